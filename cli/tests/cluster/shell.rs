//! Commands of the documentation's pages in a shell, as a reader types them.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tidewater_cli::{
    cluster::{PARENT_VARIABLE, binary, wait_until},
    nbd_client::NbdClient,
};

use crate::tool::{command, finish};

pub(crate) const LIMIT: Duration = Duration::from_mins(2);

/// A folder to be in, and variables.
pub(crate) struct Shell {
    folder: PathBuf,
    variables: Vec<(&'static str, String)>,
}

/// A child that does not outlive the test.
pub(crate) struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        eprintln!("ended: {ended:?}");
    }
}

impl Shell {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), variables: Vec::new() }
    }

    pub(crate) fn set(&mut self, variable: &'static str, value: impl Into<String>) {
        self.variables.push((variable, value.into()));
    }

    /// A shell that finds `tidewater`, and leaves what it prints in a file.
    fn command(&self, text: &str) -> Command {
        let own = binary().expect("built");
        let own = own.parent().expect("in a folder").to_str().expect("UTF-8").to_owned();
        let path = std::env::var("PATH").unwrap_or_default();
        let said = File::options().create(true).append(true).open(self.said()).expect("made");
        let mut shell = command("bash", &["-euo", "pipefail", "-c", text]);
        shell.env("PATH", format!("{own}:{path}:/usr/sbin:/sbin")).current_dir(&self.folder);
        shell.envs(self.variables.iter().map(|(name, value)| (name, value)));
        shell.stdout(said.try_clone().expect("copied")).stderr(said);
        shell
    }

    fn said(&self) -> PathBuf {
        self.folder.join("said")
    }

    /// What all commands printed so far.
    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(self.said()).expect("readable")
    }

    /// Runs a command to its end; returns its exit code.
    pub(crate) fn code_of(&self, text: &str) -> Option<i32> {
        finish(&mut self.command(text).spawn().expect("starts"), text, LIMIT).code()
    }

    /// Runs a command, which ends well.
    pub(crate) fn run(&self, text: &str) {
        let code = self.code_of(text);
        assert_eq!(code, Some(0), "{text}\n{}", self.printed());
    }

    /// Starts a server.
    pub(crate) fn start(&self, text: &str) -> Background {
        let mut command = self.command(&format!("exec {text}"));
        command.env(PARENT_VARIABLE, std::process::id().to_string());
        Background(command.spawn().expect("starts"))
    }

    /// Starts a command that goes on, and waits for its first line.
    pub(crate) fn watch(&self, text: &str) {
        let mut command = self.command(&format!("exec {text}"));
        let mut child = Background(command.stdout(Stdio::piped()).spawn().expect("starts"));
        let mut first = String::new();
        let out = child.0.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut first).expect("a line");
        assert!(!first.is_empty(), "{text} prints what was there");
    }

    /// Runs a gateway on a port of its own, and writes through it: that places the first segment.
    pub(crate) fn serve(&self, text: &str, volume: &str) -> Background {
        let port = free_port();
        let child = self.start(&format!("{text} --listen 127.0.0.1:{port}"));
        let mut nbd = wait_until("the gateway", LIMIT, || {
            let server = ([127, 0, 0, 1], port).into();
            NbdClient::connect(server, volume, LIMIT).map_err(|e| e.to_string())
        })
        .expect("it serves");
        nbd.write(0, &[1; 4096], true).expect("written");
        child
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}
