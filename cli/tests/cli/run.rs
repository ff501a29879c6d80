//! Runs the binary and looks at what came out.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// `tidewater` with `args`, without a terminal and without variables that change what it does.
pub(crate) fn tidewater(args: &[&str]) -> Ran {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_tidewater"))
        .args(args)
        .env_remove("TIDEWATER_ENDPOINT")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    Ran {
        code: output.status.code().expect("it exits by itself"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

impl Ran {
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as one JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}:\n{}", self.stdout))
    }

    /// The error that standard error ends with.
    pub(crate) fn error(&self) -> Value {
        let last = self.stderr.lines().last().expect("an error");
        let value: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}:\n{last}"));
        value["error"].clone()
    }
}
