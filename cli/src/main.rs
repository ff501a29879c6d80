//! The `tidewater` binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidewater_cli::main()
}
