# Two commands do everything on a Debian machine with Rust and make: `make demo` and `make test`.
# Both install what they need (scripts/deps.sh), say so, and build RocksDB once into a cache outside the checkout.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.PHONY: help demo test lint build bench deps-build deps-test deps-lint

export CARGO_TARGET_DIR ?= $(or $(TIDEWATER_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tidewater)/target

# Points the build at the cached RocksDB. An assignment, so that a failure stops the recipe.
rocksdb = rocksdb="$$(scripts/rocksdb.sh)"; eval "$$rocksdb"

help:
	echo "make demo    build in release and run the demo cluster under load and faults"
	echo "make test    all tests (unit, integration, documentation)"
	echo "make lint    formatting, clippy, licences and advisories"
	echo "make build   release build"
	echo "make bench   the tables of docs/results.md, some 50 minutes; all of it short: make bench ARGS=--quick"

deps-build:
	scripts/deps.sh build

deps-test:
	scripts/deps.sh build test nextest

deps-lint:
	scripts/deps.sh build

build: deps-build
	$(rocksdb)
	cargo build --release --workspace --locked

demo: build
	exec "$(CARGO_TARGET_DIR)/release/tidewater" demo $(ARGS)

# Doctests first: the run ends with the test runner's summary.
test: deps-test
	$(rocksdb)
	cargo test --workspace --locked --doc
	if cargo nextest --version >/dev/null 2>&1; then
	  cargo nextest run --workspace --locked $(ARGS)
	else
	  echo "cargo-nextest is not installed: using cargo test"
	  cargo test --workspace --locked --all-targets $(ARGS)
	fi

lint: deps-lint
	$(rocksdb)
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	if cargo deny --version >/dev/null 2>&1; then
	  cargo deny --workspace check licenses bans sources
	  if cargo deny fetch db; then
	    cargo deny --workspace check advisories
	  else
	    echo "the advisory database cannot be had here: advisories are not checked"
	  fi
	else
	  echo "cargo-deny is not installed: licences and advisories are not checked" \
	    "(cargo install --locked cargo-deny)"
	fi

bench: build
	scripts/deps.sh build test
	exec "$(CARGO_TARGET_DIR)/release/tidewater-bench" $(ARGS)
