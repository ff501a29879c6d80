//! What a command ends with: an exit code, a message and what to do about it.

use serde::Serialize;
use tidewater_client::{MetaCode, MetaError, OpenError, gateway::GatewayError};

use crate::cluster::ClusterError;

/// Kind of an ending; scripts go by its exit code, JSON by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Code {
    /// Anything not named below.
    Other,
    /// The command line or the configuration is wrong.
    Usage,
    /// There is no such thing.
    NotFound,
    /// A precondition does not hold: it exists already, is attached, or has changed.
    Conflict,
    /// No meta node answered, or none leads.
    Unreachable,
    /// The cluster works with less than it should, or not at all.
    Unhealthy,
    /// No answer in time; the operation may still take effect.
    TimedOut,
}

impl Code {
    /// The process's exit code.
    pub fn exit(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
            Self::Unhealthy => 6,
            Self::TimedOut => 9,
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Kind.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without advice.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As `{"error": {...}}`, for `-o json`.
    pub fn json(&self) -> serde_json::Value {
        let Self { code, message, hint } = self;
        serde_json::json!({ "error": { "code": code, "message": message, "hint": hint } })
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => Self::new(Code::Other, format!("{error:#}")),
        }
    }
}

impl From<MetaError> for Failure {
    fn from(error: MetaError) -> Self {
        let code = match error.code {
            MetaCode::NotFound => Code::NotFound,
            MetaCode::Exists | MetaCode::Conflict => Code::Conflict,
            MetaCode::Invalid => Code::Usage,
            MetaCode::Unreachable => Code::Unreachable,
            MetaCode::Unknown => Code::TimedOut,
            MetaCode::NoRoom | MetaCode::Unsupported | MetaCode::Internal => Code::Other,
        };
        let failure = Self::new(code, error.to_string());
        match error.code {
            MetaCode::Unreachable => failure.hint(
                "check --endpoint (or TIDEWATER_ENDPOINT) and that a majority of meta nodes runs",
            ),
            MetaCode::Unknown => {
                failure.hint("look at what is there before you try again, or use another name")
            }
            MetaCode::NoRoom => failure.hint("`tidewater node list` shows which servers have room"),
            MetaCode::Unsupported => failure.hint("the meta nodes run an older version"),
            MetaCode::NotFound => failure.hint(
                "`tidewater volume list`, `node list`, `program list` and `attach list` show what is there",
            ),
            MetaCode::Exists => failure.hint("use what is there, or take another name"),
            MetaCode::Conflict => failure.hint(
                "look at it as it is now (`show` or `list` of the same noun, `attach list`), and try again",
            ),
            MetaCode::Invalid => failure.hint("`--help` after the command says what it takes"),
            MetaCode::Internal => failure.hint("the log of the meta node that leads says more"),
        }
    }
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        match error {
            GatewayError::Open(OpenError::Meta { volume, source }) => {
                let attached = source.code == MetaCode::Conflict;
                let mut failure = Self::from(source);
                if attached {
                    failure = failure.hint(
                        "`tidewater attach list` shows who has it; --take-over fences the holder off",
                    );
                }
                Self { message: format!("attach volume {volume}: {failure}"), ..failure }
            }
            GatewayError::SameName { .. } | GatewayError::NoExports => {
                Self::new(Code::Usage, error.to_string())
            }
            GatewayError::Open(OpenError::Malformed { .. } | OpenError::Thread)
            | GatewayError::Listen(_)
            | GatewayError::Close { .. } => anyhow::Error::from(error).into(),
        }
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Meta(error) => error.into(),
            error @ ClusterError::NoDirectIo { .. } => Self::new(Code::Usage, error.to_string()),
            error @ ClusterError::Timeout { .. } => Self::new(Code::TimedOut, error.to_string()),
            error => Self::new(Code::Other, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_cluster_has_its_exit_code_and_says_what_to_do() {
        for (code, exit) in [
            (MetaCode::NotFound, 3),
            (MetaCode::Exists, 4),
            (MetaCode::Conflict, 4),
            (MetaCode::Invalid, 2),
            (MetaCode::NoRoom, 1),
            (MetaCode::Unreachable, 5),
            (MetaCode::Unknown, 9),
            (MetaCode::Unsupported, 1),
            (MetaCode::Internal, 1),
        ] {
            let failure = Failure::from(MetaError { code, message: "no".to_owned() });
            assert_eq!(failure.code.exit(), exit, "{code:?}");
            assert!(failure.hint.is_some_and(|hint| !hint.is_empty()), "{code:?}");
        }
        let source = MetaError { code: MetaCode::Conflict, message: "attached".to_owned() };
        let refused = GatewayError::Open(OpenError::Meta { volume: "v".to_owned(), source });
        let hint = Failure::from(refused).hint.expect("a hint");
        assert!(hint.contains("--take-over") && hint.contains("attach list"), "{hint}");
    }
}
