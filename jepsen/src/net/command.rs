//! Programs that change the network, run to their end.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::{Command, ExitStatus, Stdio},
};

/// Why the network could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A program is missing or could not be started.
    #[error("{program}: {source}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program refused.
    #[error("{command}: {status}: {output}")]
    Failed {
        /// With its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },
}

pub(super) fn run(command: &[&str]) -> Result<(), NetError> {
    run_with_input(command, "")
}

pub(super) fn run_with_input(command: &[&str], input: &str) -> Result<(), NetError> {
    let start = |source| NetError::Start { program: command[0].to_owned(), source };
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .env("PATH", path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    // Small enough for the pipe, and dropped at once: the program sees its end.
    let written = child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return written.map_err(start);
    }
    Err(NetError::Failed {
        command: command.join(" "),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Administrators' programs are not on everyone's path.
fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
