#!/usr/bin/env bash
# Builds RocksDB once into a cache outside the checkout and prints the environment that points a
# cargo build at it. The cache key covers the crate's version, the compiler and the flags, so a
# change of any of them builds anew and never mixes.
#
#   scripts/rocksdb.sh          builds if needed, prints `export` lines on standard output
set -euo pipefail

version=0.25.0
features='"lz4", "zstd", "bindgen-runtime"'
flags=""
[ "$(uname -m)" = x86_64 ] && flags="-march=x86-64-v3 -mpclmul"

cache=${TIDEWATER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidewater}
key=$(printf '%s\n' "$version" "$features" "$flags" "$(c++ --version | head -n 1)" "$(uname -m)" |
  sha256sum | cut -c 1-16)
home=$cache/rocksdb-$version-$key

if [ ! -f "$home/lib/librocksdb.a" ]; then
  echo "rocksdb $version: building once into $home (about 15 minutes on two cores)" >&2
  mkdir -p "$cache"
  exec 9>"$cache/rocksdb.lock"
  flock 9
  if [ ! -f "$home/lib/librocksdb.a" ]; then
    work=$home.build
    mkdir -p "$work/src"
    cat >"$work/Cargo.toml" <<TOML
[package]
name = "rocksdb-cache"
version = "0.0.0"
edition = "2021"
[dependencies]
rocksdb = { version = "=$version", default-features = false, features = [$features] }
[profile.release]
debug = false
[workspace]
TOML
    : >"$work/src/lib.rs"
    env -u ROCKSDB_LIB_DIR -u ROCKSDB_INCLUDE_DIR -u ROCKSDB_STATIC \
      CXXFLAGS="$flags" CFLAGS="$flags" CARGO_TARGET_DIR="$work/target" \
      cargo build --quiet --release --manifest-path "$work/Cargo.toml" >&2
    lib=$(find "$work/target/release/build" -path '*librocksdb-sys-*' -name librocksdb.a -print -quit)
    # Headers of exactly the version that was built: another one may lie in the registry beside it.
    sys=$(awk '/^name = "librocksdb-sys"$/ { getline; gsub(/"/, "", $3); print $3 }' "$work/Cargo.lock")
    include=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" \
      -path "*/librocksdb-sys-$sys/rocksdb/include" -print -quit)
    if [ -z "$lib" ] || [ -z "$include" ]; then
      echo "rocksdb $version: built, but its library or headers are not where expected" >&2
      exit 1
    fi
    rm -rf "$home.tmp"
    mkdir -p "$home.tmp/lib"
    cp "$lib" "$home.tmp/lib/"
    cp -r "$include" "$home.tmp/include"
    mv "$home.tmp" "$home"
    rm -rf "$work"
  fi
fi

echo "export ROCKSDB_LIB_DIR=$home/lib"
echo "export ROCKSDB_INCLUDE_DIR=$home/include"
echo "export ROCKSDB_STATIC=1"
