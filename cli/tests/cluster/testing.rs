//! docs/testing.md names tests, files and packages: all of them are there, and its command runs. No other
//! page shows commands than those that some test runs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    markdown::{Shown, commands, page, sections},
    shell::Shell,
    tool::have,
};

const PAGE: &str = "docs/testing.md";
/// Pages whose commands are run: by the tests of `readme.rs`, of `operations.rs` and of this file.
const RUN: [&str; 4] = ["README.md", "docs/operations.md", "docs/results.md", PAGE];

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file below a folder, sorted.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The packages of the workspace.
fn packages() -> Vec<PathBuf> {
    let entries = fs::read_dir(top()).expect("readable").flatten().map(|entry| entry.path());
    entries.filter(|path| path.join("Cargo.toml").is_file()).collect()
}

fn sources() -> Vec<PathBuf> {
    packages().iter().flat_map(|package| files(package, "rs")).collect()
}

/// Names of all functions in the sources, tests among them.
fn functions() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in sources() {
        let text = fs::read_to_string(&path).expect("UTF-8");
        for part in text.split("fn ").skip(1) {
            let end = part.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(part.len());
            found.insert(part[..end].to_owned());
        }
    }
    found
}

/// What stands between backticks in the tables under a heading of the page.
fn quoted(title: &str) -> Vec<String> {
    let page = page(PAGE);
    let (_, rest) = page.split_once(&format!("## {title}\n")).expect("the heading is there");
    let part = rest.split("\n## ").next().expect("a part");
    let rows = part.lines().filter(|line| line.starts_with('|'));
    let pieces = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    pieces.map(str::to_owned).collect()
}

#[test]
fn every_test_that_the_fault_table_names_is_there() {
    let functions = functions();
    let is_test = |name: &&String| name.contains('_') && !name.contains(['/', '.', ' ', '=']);
    let named = quoted("Faults");
    let missing: Vec<_> =
        named.iter().filter(is_test).filter(|name| !functions.contains(*name)).collect();
    assert!(named.len() > 40, "the table is read");
    assert!(missing.is_empty(), "{PAGE} names tests that are not there: {missing:?}");
}

#[test]
fn every_selection_of_tests_that_the_page_shows_selects_some() {
    let functions = functions();
    let modules: Vec<_> =
        sources().iter().map(|path| path.to_string_lossy().replace('/', "::")).collect();
    let mut selections = 0;
    for text in quoted("Kinds of tests") {
        let Some(arguments) = text.strip_prefix("cargo nextest run") else { continue };
        selections += 1;
        let mut words = arguments.split_whitespace();
        let mut package = None;
        while let Some(word) = words.next() {
            match word {
                "-p" => package = words.next().map(|name| folder_of(name, &text)),
                "--test" => {
                    let name = words.next().expect("a test's name");
                    let tests = package.as_ref().expect("-p comes first").join("tests");
                    let is_there =
                        tests.join(name).is_dir() || tests.join(format!("{name}.rs")).is_file();
                    assert!(is_there, "{text}: no test {name}");
                }
                "--no-capture" => {}
                filter => {
                    let is_named = functions.iter().any(|name| name.contains(filter));
                    let is_module = || modules.iter().any(|path| path.contains(filter));
                    assert!(is_named || is_module(), "{text}: selects nothing");
                }
            }
        }
    }
    assert!(selections > 5, "the table is read");
}

fn folder_of(package: &str, text: &str) -> PathBuf {
    let name = package.strip_prefix("tidewater-").unwrap_or(package);
    let folder = top().join(name);
    assert!(folder.join("Cargo.toml").is_file(), "{text}: no package {package}");
    folder
}

#[test]
fn the_command_of_the_testing_page_prints_where_rocksdb_is() {
    if !have(&["bash"]) {
        return;
    }
    // Without it this test would compile RocksDB.
    let Some(built) = std::env::var_os("ROCKSDB_LIB_DIR") else {
        eprintln!("skipped: this build did not use the cached RocksDB");
        return;
    };
    let shown = commands(&page(PAGE));
    assert_eq!(shown.len(), 1, "{shown:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let shell = Shell::new(folder.path());
    let there = top().canonicalize().expect("there");
    let text = format!(
        "cd {} && unset ROCKSDB_LIB_DIR && {}\ntest -f \"$ROCKSDB_LIB_DIR/librocksdb.a\"",
        there.display(),
        shown[0].text
    );
    if Path::new(&built).join("librocksdb.a").is_file() {
        shell.run(&text);
    }
}

#[test]
fn no_page_shows_commands_that_no_test_runs() {
    let docs = files(&top().join("docs"), "md");
    let names = docs.iter().map(|path| {
        let path = path.strip_prefix(top()).expect("below");
        path.to_str().expect("UTF-8").to_owned()
    });
    for name in names.chain(["README.md".to_owned()]) {
        let shown: Vec<Shown> =
            sections(&page(&name)).into_iter().flat_map(|section| section.commands).collect();
        assert!(shown.is_empty() || RUN.contains(&&*name), "{name}: {shown:?}");
    }
}
