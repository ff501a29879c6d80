//! The documentation shows command lines that this program takes.

use clap::Parser as _;

use crate::args::Args;

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
