//! One line of a history.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What is known with the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The operation is about to start.
    Invoke,
    /// It took effect.
    Ok,
    /// It did not and will not take effect.
    Fail,
    /// It may have taken effect or do so later; also every event of the nemesis.
    Info,
}

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// A logical thread of a client: one operation at a time.
    Client(u64),
    /// What does harm, and the runner itself.
    Nemesis,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Read registers.
    Read,
    /// Set registers.
    Write,
    /// Compare one register and set it.
    Cas,
    /// Attach a volume exclusively, fencing whoever has it.
    Attach,
    /// A fault begins.
    Fault,
    /// A fault ends.
    Heal,
    /// The run enters a stage.
    Stage,
}

/// What an operation was given or found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Nothing, or nothing yet.
    #[default]
    None,
    /// The value of one register, the same for all of several, or a token.
    One(i64),
    /// A value for each register, in order; for a `cas`, what is expected and what replaces it.
    Many(Vec<i64>),
    /// What the nemesis says.
    Text(String),
}

impl Value {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Stages of a run, in order; the value of an [`Op::Stage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No more faults, and all that were are taken back.
    Healed,
    /// The cluster says that it is whole.
    Healthy,
    /// From here on every register is read for the last time.
    Final,
}

impl Stage {
    /// As it stands in a history.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healed => "healed",
            Self::Healthy => "healthy",
            Self::Final => "final",
        }
    }
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Nanoseconds since the run began, by one monotonic clock.
    pub time: u64,
    /// Who.
    pub process: Process,
    /// What is known.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What.
    pub op: Op,
    /// First register.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<u64>,
    /// Registers; 1 where left out.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub span: u32,
    /// Given or found.
    #[serde(default, skip_serializing_if = "Value::is_none")]
    pub value: Value,
    /// The attachment through which it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<u64>,
    /// Why it is not `ok`. A `cas` that found another value fails with [`Event::DIFFERS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Event {
    /// Error of a `cas` that met another value than it expected.
    pub const DIFFERS: &str = "differs";

    /// An event of the nemesis.
    pub fn nemesis(time: u64, op: Op, text: impl Into<String>) -> Self {
        Self {
            time,
            process: Process::Nemesis,
            kind: Kind::Info,
            op,
            block: None,
            span: 1,
            value: Value::Text(text.into()),
            session: None,
            error: None,
        }
    }

    /// Whether it marks the beginning of `stage`.
    pub fn begins(&self, stage: Stage) -> bool {
        self.op == Op::Stage && matches!(&self.value, Value::Text(text) if text == stage.name())
    }
}

// The signature is that of serde's predicates.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(span: &u32) -> bool {
    *span == 1
}

fn one() -> u32 {
    1
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(number) => write!(f, "{number}"),
            Self::Nemesis => f.write_str("nemesis"),
        }
    }
}

impl Serialize for Process {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Client(number) => serializer.serialize_u64(*number),
            Self::Nemesis => serializer.serialize_str("nemesis"),
        }
    }
}

impl<'de> Deserialize<'de> for Process {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Process;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a process number or \"nemesis\"")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Process, E> {
                Ok(Process::Client(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Process, E> {
                match text {
                    "nemesis" => Ok(Process::Nemesis),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
