#!/usr/bin/env bash
# Installs what building and testing need, where it is missing.
#
#   scripts/deps.sh build        compilers for RocksDB
#   scripts/deps.sh build test   also the block clients that the tests drive
#   scripts/deps.sh nextest      cargo-nextest, which runs the tests
#
# Debian packages are installed as root or with a sudo that asks nothing; otherwise the line to run is
# printed. A missing test tool is an error only with TIDEWATER_REQUIRE_TOOLS=1: elsewhere its tests are
# skipped. cargo-nextest is compiled, which takes minutes; where it cannot be had, as without a network,
# `make test` uses cargo test.
set -euo pipefail

# cargo_tool NAME: whether `cargo NAME` is there, or could be installed.
cargo_tool() {
  ! cargo "$1" --version >/dev/null 2>&1 || return 0
  echo "installing: cargo-$1 (cargo install --locked cargo-$1)" >&2
  # Apart from the workspace: it must not use its target folder and RocksDB's variables.
  if env -u CARGO_TARGET_DIR cargo install --quiet --locked "cargo-$1" >&2; then return 0; fi
  echo "cargo-$1 could not be installed" >&2
  return 1
}

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
  case $set in
    nextest)
      cargo_tool nextest || true
      continue
      ;;
  esac
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
