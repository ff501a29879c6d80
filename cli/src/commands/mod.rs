//! One file a noun: its verbs, what they ask of the cluster and how the answers are shown.

pub(crate) mod attach;
pub(crate) mod cluster;
pub(crate) mod event;
pub(crate) mod health;
pub(crate) mod node;
pub(crate) mod program;
pub(crate) mod segment;
pub(crate) mod volume;

/// A server's id on the command line, "3" or "s3".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerArg(pub(crate) u64);

impl std::str::FromStr for ServerArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix('s').unwrap_or(text);
        digits.parse().map(Self).map_err(|_| "expected a server's id, such as s3")
    }
}
