//! The commands that a page of documentation shows.

use std::{fs, path::PathBuf};

/// One command of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Behind a `#` prompt.
    pub(crate) needs_root: bool,
    pub(crate) text: String,
}

/// A file of the project, by its path from the top.
pub(crate) fn page(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A part of a page under a heading of the second level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) commands: Vec<Shown>,
}

/// The parts of a page, in order; what stands before the first heading has an empty title.
pub(crate) fn sections(page: &str) -> Vec<Section> {
    let parts = format!("\n{page}");
    let parts = parts.split("\n## ").enumerate().map(|(i, part)| {
        let title = if i == 0 { "" } else { part.lines().next().unwrap_or_default() };
        Section { title: title.to_owned(), commands: commands(part) }
    });
    parts.collect()
}

/// Every line of a `sh` block, and every line with a prompt of a `console` block, in order.
pub(crate) fn commands(page: &str) -> Vec<Shown> {
    let mut language = None;
    let mut found = Vec::new();
    for line in page.lines() {
        if let Some(fence) = line.strip_prefix("```") {
            language = if language.is_some() { None } else { Some(fence) };
            continue;
        }
        let (needs_root, text) = match language {
            Some("sh") => (false, Some(line)),
            Some("console") if line.starts_with("# ") => (true, line.strip_prefix("# ")),
            Some("console") => (false, line.strip_prefix("$ ")),
            Some(_) | None => (false, None),
        };
        found.extend(text.map(|text| Shown { needs_root, text: text.to_owned() }));
    }
    found
}
