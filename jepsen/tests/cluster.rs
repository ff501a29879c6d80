//! Short runs on clusters of real processes: the whole way from load and faults to a verdict.

use std::time::Duration;

use tidewater_cli::cluster::Folder;
use tidewater_jepsen::{
    checker::{Rank, Verdict},
    history::{Op, read_json},
    nemesis::{Bite, Nemesis},
    report,
    run::{Outcome, RunSpec, run},
    workload::Workload,
};

/// A run whose folder goes when it is valid; a failure prints the summary, which has the seed.
fn valid(workload: Workload, nemesis: Nemesis, seconds: u64) -> (Outcome, Folder) {
    let folder = Folder::make(None).expect("a disk");
    let spec = RunSpec {
        workload,
        nemesis,
        length: Duration::from_secs(seconds),
        seed: u64::from(rand::random::<u32>()),
        folder: folder.path().to_path_buf(),
        keep: false,
    };
    let outcome = run(&spec).unwrap_or_else(|error| panic!("seed {}: {error:#}", spec.seed));
    let summary = report::summary(&spec, &outcome);
    eprintln!("{summary}");
    assert_eq!(outcome.rank(), Rank::Valid, "{summary}");
    assert!(outcome.verdicts.iter().all(|(_, verdict)| *verdict == Verdict::Valid), "{summary}");
    (outcome, folder)
}

#[test]
fn registers_are_linearizable_while_chunkservers_are_killed() {
    let (outcome, folder) = valid(Workload::Registers, Nemesis::KillChunkserver, 8);
    assert!(outcome.bites.iter().any(Bite::bit), "{:?}", outcome.bites);
    let file = std::fs::File::open(folder.path().join("history.jsonl")).expect("written");
    let events = read_json(std::io::BufReader::new(file)).expect("readable");
    assert_eq!(events, outcome.events, "the file is the history");
    let page = std::fs::read_to_string(folder.path().join("report.html")).expect("written");
    assert!(page.contains("<svg") && page.contains("kill chunkserver-"));
}

#[test]
fn what_was_under_way_at_a_take_over_lands_before_it_or_never() {
    let (outcome, _folder) = valid(Workload::Takeover, Nemesis::None, 5);
    let attaches = outcome.events.iter().filter(|event| event.op == Op::Attach).count();
    // Begin and end of three: each client's, and that of the final reads.
    assert!(attaches >= 6, "{attaches}");
}
