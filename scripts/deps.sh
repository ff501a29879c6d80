#!/usr/bin/env bash
# Installs the Debian packages that building and testing need, where they are missing.
#
#   scripts/deps.sh build        compilers for RocksDB
#   scripts/deps.sh build test   also the block clients that the tests drive
#
# As root or with a sudo that asks nothing it installs; otherwise it prints the line to run. A missing
# test tool is an error only with TIDEWATER_REQUIRE_TOOLS=1: elsewhere its tests are skipped.
set -euo pipefail

# package, then a command or file that shows it is there
build_needs='
g++ g++
clang clang
libclang-dev /usr/lib/llvm-*/lib/libclang*.so*
make make
'
test_needs='
fio fio
libnbd-bin nbdcopy
libnbd-bin nbdinfo
libnbd-bin nbdfuse
qemu-utils qemu-img
e2fsprogs mkfs.ext4
fuse3 fusermount3
iproute2 ip
nftables nft
python3 python3
'

is_there() {
  case $1 in
    /*) compgen -G "$1" >/dev/null ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
  esac
}

missing=()
required=no
for set in "$@"; do
  needs=${set}_needs
  while read -r package sign; do
    [ -n "$package" ] || continue
    if ! is_there "$sign"; then
      missing+=("$package")
      if [ "$set" = build ] || [ "${TIDEWATER_REQUIRE_TOOLS:-}" = 1 ]; then required=yes; fi
    fi
  done <<<"${!needs}"
done
[ ${#missing[@]} -gt 0 ] || exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
install=(apt-get install -y --no-install-recommends "${missing[@]}")
if ! command -v apt-get >/dev/null; then
  echo "missing: ${missing[*]} (no apt-get here: install their equivalents)" >&2
elif [ "$(id -u)" = 0 ]; then
  echo "installing: ${missing[*]}" >&2
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive "${install[@]}" >&2
  exit 0
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  echo "installing with sudo: ${missing[*]}" >&2
  sudo -n apt-get update -qq >&2
  sudo -n DEBIAN_FRONTEND=noninteractive "${install[@]}" >&2
  exit 0
else
  echo "missing: ${missing[*]}; run: sudo ${install[*]}" >&2
fi
[ "$required" = no ] || exit 1
