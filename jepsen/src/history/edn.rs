//! A history as EDN, for Jepsen and Knossos.
//!
//! The history of one block is one of Knossos' `cas-register`: values are numbers, `nil` where
//! nothing was ever written. The history of all blocks has `[block value]` in place of each value, as
//! `jepsen.independent` does. An operation on several registers becomes one on each, at the same times.

use std::io::{self, Write};

use super::{Event, Kind, Op, Process, UNWRITTEN, Value};

/// Writes the events that concern `block`, or all of them.
///
/// # Errors
///
/// Those of `out`.
pub fn write_edn(out: &mut impl Write, events: &[Event], block: Option<u64>) -> io::Result<()> {
    let mut index = 0;
    for event in events {
        match (event.process, event.block) {
            (Process::Nemesis, _) => line(out, event, index, &text(&event.value))?,
            (Process::Client(_), None) => continue,
            (Process::Client(_), Some(first)) => {
                for at in 0..event.span {
                    let register = first + u64::from(at);
                    let value = register_value(event, at as usize);
                    match block {
                        None => line(out, event, index, &format!("[{register} {value}]"))?,
                        Some(block) if block == register => line(out, event, index, &value)?,
                        Some(_) => continue,
                    }
                    index += 1;
                }
                continue;
            }
        }
        index += 1;
    }
    Ok(())
}

fn line(out: &mut impl Write, event: &Event, index: u64, value: &str) -> io::Result<()> {
    let kind = match event.kind {
        Kind::Invoke => "invoke",
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        Kind::Info => "info",
    };
    let op = match event.op {
        Op::Read => "read",
        Op::Write => "write",
        Op::Cas => "cas",
        Op::Attach => "attach",
        Op::Fault => "fault",
        Op::Heal => "heal",
        Op::Stage => "stage",
    };
    let process = match event.process {
        Process::Client(number) => number.to_string(),
        Process::Nemesis => ":nemesis".to_owned(),
    };
    write!(
        out,
        "{{:index {index}, :time {}, :type :{kind}, :process {process}, :f :{op}, :value {value}",
        event.time
    )?;
    if let Some(error) = &event.error {
        write!(out, ", :error {}", quoted(error))?;
    }
    writeln!(out, "}}")
}

fn register_value(event: &Event, at: usize) -> String {
    match &event.value {
        Value::One(value) => number(*value),
        Value::Many(pair) if event.op == Op::Cas => {
            let numbers: Vec<_> = pair.iter().copied().map(number).collect();
            format!("[{}]", numbers.join(" "))
        }
        Value::Many(each) => each.get(at).copied().map_or_else(|| "nil".to_owned(), number),
        Value::None | Value::Text(_) => "nil".to_owned(),
    }
}

fn number(value: i64) -> String {
    if value == UNWRITTEN { "nil".to_owned() } else { value.to_string() }
}

fn text(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::One(number) => number.to_string(),
        Value::None | Value::Many(_) => "nil".to_owned(),
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(if c == '\n' { ' ' } else { c });
    }
    out.push('"');
    out
}
