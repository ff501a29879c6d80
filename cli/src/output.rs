//! How results are printed: a table for people, JSON for programs, names for pipes.

use std::io::Write;

use clap::ValueEnum;
use comfy_table::Table;
use serde::Serialize;

use crate::{failure::Failure, units::ByteSize};

/// Version of the JSON contract: within it fields are only added.
const API_VERSION: &str = "tidewater/v1";

/// Form of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line
    Jsonl,
    /// Names alone, one a line
    Name,
}

impl Format {
    /// Whether errors are JSON too.
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// Something a command prints.
pub(crate) trait Item: Serialize {
    /// Its kind in JSON; a list's is this and "List".
    const KIND: &'static str;
    /// Headings of its table.
    const COLUMNS: &'static [&'static str];
    /// What identifies it to other commands.
    fn name(&self) -> String;
    /// One text a column.
    fn cells(&self, sizes: Sizes) -> Vec<String>;
}

/// How tables show sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    exact: bool,
}

impl Sizes {
    pub(crate) fn show(self, bytes: u64) -> String {
        if self.exact { bytes.to_string() } else { ByteSize(bytes).to_string() }
    }
}

/// Where results go, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) headers: bool,
    pub(crate) exact: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, T> {
    api_version: &'static str,
    kind: String,
    #[serde(flatten)]
    content: Content<'a, T>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a, T> {
    List { items: &'a [T] },
    One(&'a T),
}

/// A result without fields.
#[derive(Serialize)]
struct Done {}

impl Output {
    /// Prints any number of items.
    pub(crate) fn list<T: Item>(self, items: &[T]) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.table(items),
            Format::Json => {
                let kind = format!("{}List", T::KIND);
                line(&pretty(&Document {
                    api_version: API_VERSION,
                    kind,
                    content: Content::List { items },
                })?)
            }
            Format::Jsonl => items.iter().try_for_each(|item| line(&compact(item)?)),
            Format::Name => items.iter().try_for_each(|item| line(&item.name())),
        }
    }

    /// Prints one item, in a table as one line a field.
    pub(crate) fn one<T: Item>(self, item: &T) -> Result<(), Failure> {
        match self.format {
            Format::Table => {
                let cells = item.cells(Sizes { exact: self.exact });
                let width = T::COLUMNS.iter().map(|c| c.len()).max().unwrap_or(0);
                T::COLUMNS.iter().zip(cells).try_for_each(|(column, cell)| {
                    line(&format!("{:width$}  {cell}", column.to_lowercase()))
                })
            }
            Format::Json => {
                let kind = T::KIND.to_owned();
                line(&pretty(&Document {
                    api_version: API_VERSION,
                    kind,
                    content: Content::One(item),
                })?)
            }
            Format::Jsonl => line(&compact(item)?),
            Format::Name => line(&item.name()),
        }
    }

    /// Tells that a command is done that has nothing else to tell; only JSON says so.
    pub(crate) fn done(self) -> Result<(), Failure> {
        match self.format {
            Format::Table | Format::Name => Ok(()),
            Format::Json => line(&pretty(&Document {
                api_version: API_VERSION,
                kind: "Done".to_owned(),
                content: Content::One(&Done {}),
            })?),
            Format::Jsonl => line(&compact(&Done {})?),
        }
    }

    fn table<T: Item>(self, items: &[T]) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if self.headers {
            table.set_header(T::COLUMNS);
        }
        let sizes = Sizes { exact: self.exact };
        table.add_rows(items.iter().map(|item| item.cells(sizes)));
        for row in table.lines() {
            line(row.trim())?;
        }
        Ok(())
    }
}

fn pretty<T: Serialize>(value: &T) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?)
}

fn compact<T: Serialize>(value: &T) -> Result<String, Failure> {
    Ok(serde_json::to_string(value).map_err(anyhow::Error::from)?)
}

/// Prints a line. A reader that has left (a closed pipe) ends the process quietly, as `head` expects.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other.map_err(anyhow::Error::from)?),
    }
}

/// Unix milliseconds as RFC 3339.
pub(crate) fn time(unix_ms: u64) -> String {
    let shown =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    shown.map_or_else(|| "-".to_owned(), |time| time.to_string())
}

/// What `tidewater version` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Version {
    version: &'static str,
}

impl Version {
    pub(crate) fn current() -> Self {
        Self { version: env!("CARGO_PKG_VERSION") }
    }
}

impl Item for Version {
    const KIND: &'static str = "Version";
    const COLUMNS: &'static [&'static str] = &["TIDEWATER"];

    fn name(&self) -> String {
        self.version.to_owned()
    }

    fn cells(&self, _: Sizes) -> Vec<String> {
        vec![self.version.to_owned()]
    }
}
