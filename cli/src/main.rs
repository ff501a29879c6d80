//! The `tidewater` binary; everything is in the library.

use std::process::ExitCode;

/// Aligned buffers of one block are the common case; the C library's allocator spends two blocks on each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tidewater_cli::main()
}
