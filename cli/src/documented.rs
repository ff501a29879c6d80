//! The documentation shows command lines that this program takes.

use std::{collections::BTreeSet, fs, path::Path};

use clap::{Command, CommandFactory as _, Parser as _};

use crate::{args::Args, config::ChunkserverFile};

#[expect(dead_code, reason = "the tests of clusters use the rest")]
#[path = "../tests/cluster/markdown.rs"]
mod markdown;

#[test]
fn every_command_of_the_pages_is_understood() {
    for name in ["README.md", "docs/operations.md", "docs/testing.md"] {
        let page = markdown::page(name);
        let shown = markdown::commands(&page).into_iter().map(|shown| shown.text);
        let ours: Vec<_> = shown.filter(|text| text.starts_with("tidewater ")).collect();
        assert!(!ours.is_empty() || name == "docs/testing.md", "{name} shows some");
        for text in ours {
            assert!(!text.contains(['"', '\'', '\\']), "{name}: quotes are not understood: {text}");
            if let Err(error) = Args::try_parse_from(text.split_whitespace()) {
                panic!("{name}: {text}\n{error}");
            }
        }
    }
}

#[test]
fn the_readme_is_at_most_250_lines_and_keeps_its_order() {
    let page = markdown::page("README.md");
    assert!(page.lines().count() <= 250, "{} lines", page.lines().count());
    let titles: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let order = [
        "What you see",
        "Quick start",
        "What it is, and what it is not",
        "Use it",
        "How it works",
        "Results",
        "How it is tested",
        "Operate it",
        "Repository",
    ];
    assert_eq!(titles, order);
}

/// Full names of the commands that have no commands below them.
fn leaves(command: &Command, name: &str, found: &mut BTreeSet<String>) {
    let below: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
    if below.is_empty() {
        found.insert(name.to_owned());
    }
    for command in below {
        let name = format!("{name}-{}", command.get_name());
        leaves(command, name.trim_start_matches('-'), found);
    }
}

#[test]
fn the_fields_of_every_command_are_pinned() {
    // Servers print nothing, the demo lines for people, and a completion script is no data.
    const WITHOUT: [&str; 6] =
        ["demo", "meta-run", "meta-restore", "chunkserver-run", "gateway-run", "completion"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let pinned = fs::read_dir(folder).expect("readable").flatten().map(|entry| entry.path());
    let pinned: BTreeSet<_> =
        pinned.map(|p| p.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    let mut commands = BTreeSet::new();
    leaves(&Args::command(), "", &mut commands);
    commands.retain(|name| !WITHOUT.contains(&&**name));
    assert_eq!(pinned, commands, "left what is pinned, right what there is");
}

/// The lines of all blocks of a language, block by block.
fn blocks(page: &str, wanted: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language == wanted, String::new())),
            (Some(_), Some(_)) => {
                found.extend(open.take().filter(|(is_wanted, _)| *is_wanted).map(|(_, text)| text));
            }
            (None, Some((_, text))) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

#[test]
fn the_configuration_of_the_operations_page_is_that_of_a_chunkserver() {
    let shown = blocks(&markdown::page("docs/operations.md"), "toml");
    assert!(!shown.is_empty(), "the page shows one");
    for text in shown {
        let file = toml::from_str::<ChunkserverFile>(&text);
        let file = file.unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert!(file.data_dir.is_some() && file.device.len() == 2, "{file:?}");
    }
}
