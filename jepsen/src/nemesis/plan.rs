//! The schedule of faults, as data: the same seed gives the same one.

use std::{fmt, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

/// Load before the first fault.
const FIRST_MS: std::ops::Range<u64> = 1000..2000;
/// How long a fault lasts.
const LAST_MS: std::ops::Range<u64> = 500..4000;
/// From the end of one to the begin of the next.
const QUIET_MS: std::ops::Range<u64> = 1000..3000;

/// A kind of schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Nemesis {
    /// No faults
    None,
    /// SIGKILL of a chunkserver, a meta node or the meta leader
    Kills,
    /// SIGKILL of chunkservers
    KillChunkserver,
    /// SIGKILL of the meta leader
    KillLeader,
    /// SIGKILL of the gateway
    KillGateway,
    /// SIGKILL of every process at once
    KillAll,
    /// SIGSTOP of a chunkserver, a meta node or the meta leader
    Pauses,
    /// SIGSTOP of chunkservers
    PauseChunkserver,
    /// SIGSTOP of the meta leader
    PauseLeader,
    /// SIGSTOP of the gateway
    PauseGateway,
    /// Network cut in two parts, around one node, or in one direction
    Partitions,
    /// A chunkserver cut off from all servers, not from clients
    CutChunkserver,
    /// Packets lost at one node
    Loss,
    /// A node behind a slow link
    Slow,
    /// Kills, pauses, cuts, loss and slow links in turn
    Mixed,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// SIGKILL, and a start on the same data.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// The servers fall into two parts that do not hear each other; clients hear all.
    Halves,
    /// Other servers and one do not hear each other.
    Isolate,
    /// One server hears no other, but is heard.
    Deaf,
    /// Part of the packets to one server are lost, percent.
    Loss(u8),
    /// One server sends no faster than this, kbit/s.
    Slow(u32),
}

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// One of the chunkservers.
    Chunkserver,
    /// One of the meta nodes.
    Meta,
    /// The meta node that leads at that time.
    Leader,
    /// The gateway.
    Gateway,
    /// Every process.
    All,
    /// A chunkserver or a meta node.
    Server,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From the end of the fault before, or the begin of the load.
    pub after: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// What.
    pub harm: Harm,
    /// To whom.
    pub on: On,
    /// Which of them, where there are several.
    pub pick: u64,
}

impl Nemesis {
    fn menu(self) -> &'static [(Harm, On)] {
        use Harm::{Deaf, Halves, Isolate, Kill, Loss, Pause, Slow};
        use On::{All, Chunkserver, Gateway, Leader, Meta, Server};
        match self {
            Self::None => &[],
            // Chunkservers twice: they are what data goes through.
            Self::Kills => {
                &[(Kill, Chunkserver), (Kill, Chunkserver), (Kill, Leader), (Kill, Meta)]
            }
            Self::KillChunkserver => &[(Kill, Chunkserver)],
            Self::KillLeader => &[(Kill, Leader)],
            Self::KillGateway => &[(Kill, Gateway)],
            Self::KillAll => &[(Kill, All)],
            Self::Pauses => {
                &[(Pause, Chunkserver), (Pause, Chunkserver), (Pause, Leader), (Pause, Meta)]
            }
            Self::PauseChunkserver => &[(Pause, Chunkserver)],
            Self::PauseLeader => &[(Pause, Leader)],
            Self::PauseGateway => &[(Pause, Gateway)],
            Self::Partitions => {
                // A chunkserver that is cut off is still asked by clients: it must not answer.
                &[(Halves, All), (Isolate, Chunkserver), (Isolate, Leader), (Deaf, Server)]
            }
            Self::CutChunkserver => &[(Isolate, Chunkserver)],
            Self::Loss => &[(Loss(5), Chunkserver), (Loss(20), Chunkserver), (Loss(10), Leader)],
            Self::Slow => &[(Slow(1000), Chunkserver), (Slow(10_000), Chunkserver)],
            Self::Mixed => &[
                (Kill, Chunkserver),
                (Pause, Chunkserver),
                (Kill, Leader),
                (Pause, Leader),
                (Halves, All),
                (Isolate, Chunkserver),
                (Deaf, Server),
                (Loss(10), Chunkserver),
                (Slow(2000), Chunkserver),
            ],
        }
    }

    /// Whether it needs a network of its own.
    pub(crate) fn cuts(self) -> bool {
        self.menu().iter().any(|(harm, _)| !matches!(harm, Harm::Kill | Harm::Pause))
    }

    /// Whether it needs a gateway.
    pub(crate) fn needs_gateway(self) -> bool {
        self.menu().iter().any(|(_, on)| *on == On::Gateway)
    }
}

/// The faults of a run of about this length. At least one, unless the nemesis does none.
pub fn plan(nemesis: Nemesis, seed: u64, length: Duration) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut between = |range: std::ops::Range<u64>| {
        (Duration::from_millis(random.random_range(range)), random.random())
    };
    let (mut faults, mut at, mut quiet) = (Vec::new(), Duration::ZERO, FIRST_MS);
    loop {
        let (after, dice) = between(quiet);
        let (lasts, pick) = between(LAST_MS);
        let Some(&(harm, on)) = nemesis.menu().choose(&mut StdRng::seed_from_u64(dice)) else {
            return faults;
        };
        at += after + lasts;
        if at > length && !faults.is_empty() {
            return faults;
        }
        faults.push(Fault { after, lasts, harm, on, pick });
        quiet = QUIET_MS;
    }
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("kill"),
            Self::Pause => f.write_str("pause"),
            Self::Halves => f.write_str("cut in two"),
            Self::Isolate => f.write_str("cut off"),
            Self::Deaf => f.write_str("deafen"),
            Self::Loss(percent) => write!(f, "lose {percent}% at"),
            Self::Slow(kbit) => write!(f, "{kbit} kbit/s at"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_mins(1);

    #[test]
    fn a_seed_gives_one_schedule_and_another_gives_another() {
        let of = |seed| plan(Nemesis::Mixed, seed, LENGTH);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(of(1).len() > 5);
    }

    #[test]
    fn a_schedule_fits_the_length_and_has_a_fault_where_there_can_be_one() {
        for seed in 0..100 {
            let faults = plan(Nemesis::Kills, seed, LENGTH);
            let sum: Duration = faults.iter().map(|fault| fault.after + fault.lasts).sum();
            assert!(sum <= LENGTH, "seed {seed}: {sum:?}");
            assert_eq!(plan(Nemesis::Kills, seed, Duration::ZERO).len(), 1);
            assert_eq!(plan(Nemesis::None, seed, LENGTH), []);
        }
    }
}
