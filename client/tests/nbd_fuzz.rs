//! Mutated streams of real clients against the NBD session. Deterministic: a failure prints the seed
//! and the number of the input, and `TIDEWATER_FUZZ_SEED` repeats the run.

use std::{env, fs, path::Path, sync::Arc};

use bytes::{Buf as _, Bytes, BytesMut};
use tidewater_client::nbd::{
    Command, Errno, ExportInfo, Limits, PAYLOAD_BYTES_MAX, Run, Session, Step,
};

const INPUTS: u64 = 1_000_000;
const SEED: u64 = 0x7469_6465;
const THREADS: u64 = 2;
const LIMITS: Limits = Limits { requests: 4, bytes: 4096 };
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// `SplitMix64` (Steele et al., OOPSLA '14).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn corpus() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> =
        fs::read_dir(dir).expect("a corpus").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files.iter().map(|f| fs::read(f).expect("a file")).collect()
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

fn exports() -> Arc<[ExportInfo]> {
    let export = |name: &str, read_only| ExportInfo {
        name: name.to_owned(),
        description: String::new(),
        size_bytes: 1 << 30,
        read_only,
        fast_zero: true,
        multi_conn: true,
    };
    [export("disk", false), export("ro", true)].into()
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    const TELLING: [u32; 8] = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 32 << 20, 4096, 65_536];
    let at = random.below(input.len());
    match random.below(8) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = random.next() as u8,
        2 => input.insert(at, random.next() as u8),
        3 => drop(input.remove(at)),
        4 => input.truncate(at + 1),
        5 => {
            let value = TELLING[random.below(TELLING.len())].to_be_bytes();
            let end = input.len().min(at + 4);
            input[at..end].copy_from_slice(&value[..end - at]);
        }
        6 => {
            let end = (at + random.below(64)).min(input.len());
            let copy = input[at..end].to_vec();
            let to = random.below(input.len());
            input.splice(to..to, copy);
        }
        _ => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len());
            input.truncate(at + 1);
            input.extend_from_slice(&other[from..]);
        }
    }
}

/// Names the input when a check fails.
struct Culprit {
    seed: u64,
    input: u64,
}

impl Drop for Culprit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("fuzz: input {} of seed {} failed", self.input, self.seed);
        }
    }
}

/// Drives one session through one input and checks everything it says.
struct Check {
    session: Session,
    greeted: bool,
    opened: bool,
    /// The answer to `EXPORT_NAME` has no header, so transmission must follow.
    must_open: bool,
    open_costs: Vec<u32>,
}

impl Check {
    fn new(exports: &Arc<[ExportInfo]>) -> Self {
        Self {
            session: Session::new(Arc::clone(exports), LIMITS),
            greeted: false,
            opened: false,
            must_open: false,
            open_costs: Vec::new(),
        }
    }

    /// Steps until the session wants more input; false when it has closed.
    fn run(&mut self, random: &mut Random) -> bool {
        loop {
            match self.session.step() {
                Step::Read { bytes } => {
                    assert!(bytes > 0 && bytes <= PAYLOAD_BYTES_MAX as usize + 28);
                    return true;
                }
                Step::Send(bytes) => self.check_sent(bytes),
                Step::Opened { export } => {
                    assert!(!self.opened && export < 2);
                    (self.opened, self.must_open) = (true, false);
                }
                Step::Request(request) => {
                    assert!(self.opened);
                    check_command(&request.command);
                    self.open_costs.push(request.cost_bytes);
                    self.check_bounds();
                    if random.below(2) == 0 {
                        self.finish_one(&request.command, request.cookie);
                    }
                }
                Step::Full => {
                    assert!(!self.open_costs.is_empty(), "full with nothing in flight is a hang");
                    self.finish_one(&Command::Flush, 1);
                }
                Step::Close(_) => return false,
            }
        }
    }

    fn check_bounds(&self) {
        assert_eq!(self.session.in_flight(), self.open_costs.len());
        assert!(self.open_costs.len() <= LIMITS.requests);
        let bytes: u64 = self.open_costs.iter().map(|&c| u64::from(c)).sum();
        assert!(bytes <= LIMITS.bytes || self.open_costs.len() == 1);
    }

    fn finish_one(&mut self, command: &Command, cookie: u64) {
        let cost = self.open_costs.pop().expect("one is open");
        self.session.finish(cost);
        let replies = self.session.replies();
        let mut out = BytesMut::new();
        match command {
            Command::Read { offset, len } => {
                replies.put_read_header(&mut out, cookie, *offset, *len);
                let payload = if replies.structured { 8 } else { 0 };
                check_reply(&out, replies.structured, Some(*len as usize), payload);
                return;
            }
            Command::BlockStatus { len, one, .. } => {
                let runs = [Run { len: 512, data: true }, Run { len: 1024, data: false }];
                replies.put_status(&mut out, cookie, *len, *one, &runs);
            }
            Command::Flush => replies.put_error(&mut out, cookie, Errno::Io, "flush failed"),
            Command::Write { .. }
            | Command::Trim { .. }
            | Command::WriteZeroes { .. }
            | Command::Cache { .. } => replies.put_done(&mut out, cookie),
        }
        check_reply(&out, replies.structured, None, 0);
    }

    fn check_sent(&mut self, mut bytes: Bytes) {
        assert!(!self.must_open, "nothing but transmission follows an answer to EXPORT_NAME");
        if !self.greeted {
            assert_eq!(bytes.len(), 18);
            self.greeted = true;
        } else if self.opened {
            check_reply(&bytes, self.session.replies().structured, None, 0);
        } else if !bytes.starts_with(&OPTION_REPLY_MAGIC.to_be_bytes()) {
            assert!(bytes.len() == 10 || bytes.len() == 134);
            self.must_open = true;
        } else {
            while !bytes.is_empty() {
                assert!(bytes.len() >= 20, "half a reply");
                assert_eq!(bytes.get_u64(), OPTION_REPLY_MAGIC);
                bytes.advance(8);
                let len = bytes.get_u32() as usize;
                bytes.advance(len);
            }
        }
    }
}

fn check_command(command: &Command) {
    let (offset, len) = match command {
        Command::Read { offset, len }
        | Command::Trim { offset, len, .. }
        | Command::WriteZeroes { offset, len, .. }
        | Command::BlockStatus { offset, len, .. }
        | Command::Cache { offset, len } => (*offset, u64::from(*len)),
        Command::Write { offset, data, .. } => (*offset, data.len() as u64),
        Command::Flush => return,
    };
    assert!(len > 0 && offset + len <= 1 << 30, "out of range: {command:?}");
}

/// One reply, of a header and what it announces; `behind` bytes of data are sent separately.
fn check_reply(mut bytes: &[u8], structured: bool, behind: Option<usize>, within: usize) {
    let magic = bytes.get_u32();
    if structured {
        assert_eq!(magic, 0x668e_33ef);
        assert_eq!(bytes.get_u16(), 1, "the only chunk is the last");
        bytes.advance(10);
        let len = bytes.get_u32() as usize;
        assert_eq!(len, bytes.len() + behind.unwrap_or(0));
        assert!(behind.is_none() || bytes.len() == within);
    } else {
        assert_eq!(magic, 0x6744_6698);
        assert_eq!(bytes.len(), 12);
    }
}

fn fuzz(thread: u64, inputs: u64, seed: u64, corpus: &[Vec<u8>]) -> [u64; 2] {
    let exports = exports();
    let (mut opened, mut closed) = (0, 0);
    for i in (thread..inputs).step_by(THREADS as usize) {
        let _culprit = Culprit { seed, input: i };
        let mut random = Random(seed ^ i.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(3) {
            if !input.is_empty() {
                mutate(&mut input, corpus, &mut random);
            }
        }
        let mut check = Check::new(&exports);
        let mut rest = &input[..];
        let mut alive = check.run(&mut random);
        while alive && !rest.is_empty() {
            let (now, later) = rest.split_at(1 + random.below(rest.len()));
            check.session.input().extend_from_slice(now);
            alive = check.run(&mut random);
            assert!(check.session.input().len() <= input.len(), "kept more than it was given");
            rest = later;
        }
        opened += u64::from(check.opened);
        closed += u64::from(!alive);
    }
    [opened, closed]
}

#[test]
fn no_mutated_stream_makes_the_session_panic_hang_or_answer_nonsense() {
    let (inputs, seed) =
        (number("TIDEWATER_FUZZ_INPUTS", INPUTS), number("TIDEWATER_FUZZ_SEED", SEED));
    println!("fuzz: {inputs} inputs, seed {seed}");
    let corpus = corpus();
    let totals = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|t| {
                let corpus = &corpus;
                scope.spawn(move || fuzz(t, inputs, seed, corpus))
            })
            .collect();
        threads.into_iter().fold([0, 0], |sum, thread| {
            let [opened, closed] = thread.join().expect("no panic; see above for the input");
            [sum[0] + opened, sum[1] + closed]
        })
    });
    println!("fuzz: {} reached transmission, {} were closed", totals[0], totals[1]);
    assert!(totals[0] > inputs / 10 && totals[1] > inputs / 10, "mutations lost their grip");
}
