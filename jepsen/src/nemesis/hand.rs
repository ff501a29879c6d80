//! Carries faults out on a cluster, and takes them back.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use tidewater_cli::cluster::{Cluster, ClusterError, Seat};

use super::plan::{Fault, Harm, On};
use crate::{
    history::Op,
    net::{Net, NetError},
    recorder::Recorder,
    workload::{Gateway, announce_attach},
};

/// Between two looks at whether the run was broken off.
const LOOK: Duration = Duration::from_millis(20);

/// What a woken process gets before it is killed.
const WOKEN: Duration = Duration::from_millis(500);

/// Why a fault could not be carried out or taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HarmError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Net(#[from] NetError),
}

/// A fault under way.
struct UnderWay {
    fault: Fault,
    seats: Vec<Seat>,
    text: String,
    /// Term of the meta leader before.
    term: Option<u64>,
}

/// Does harm to one cluster.
pub(crate) struct Hand<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) net: Option<&'a Net>,
    pub(crate) recorder: &'a Recorder,
    pub(crate) gateway: Option<&'a Gateway>,
    /// The gateway loses the volume while it is paused, and has to be started anew.
    pub(crate) contested: bool,
}

impl Hand<'_> {
    /// Carries out a schedule, one fault after the other, until `is_over`.
    pub(crate) fn run(
        &mut self,
        faults: &[Fault],
        is_over: impl Fn() -> bool,
    ) -> Result<(), HarmError> {
        for fault in faults {
            if !wait(fault.after, &is_over) {
                return Ok(());
            }
            let under_way = self.begin(*fault)?;
            wait(fault.lasts, &is_over);
            self.end(under_way)?;
        }
        Ok(())
    }

    /// Takes everything back, whatever state it is in.
    pub(crate) fn heal(&mut self) -> Result<(), HarmError> {
        if let Some(net) = self.net {
            net.heal()?;
        }
        let seats: Vec<_> = self.cluster.seats().collect();
        for seat in seats.into_iter().filter(|seat| self.cluster.is_running(*seat)) {
            self.cluster.resume(seat)?;
        }
        self.start_all()
    }

    fn begin(&mut self, fault: Fault) -> Result<UnderWay, HarmError> {
        let term = self.term();
        let seats = self.seats(fault)?;
        let names: Vec<_> = seats.iter().map(ToString::to_string).collect();
        let text = if fault.on == On::All && fault.harm == Harm::Kill {
            "kill everything".to_owned()
        } else {
            format!("{} {}", fault.harm, names.join(", "))
        };
        let in_flight = self.recorder.in_flight();
        let role = if fault.on == On::Leader { " (meta leader)" } else { "" };
        self.recorder.nemesis(Op::Fault, format!("{text}{role}; {in_flight} in flight"));
        match (fault.harm, self.net) {
            (Harm::Kill, _) if fault.on == On::All => self.cluster.kill_all()?,
            (Harm::Kill, _) => {
                seats.iter().try_for_each(|seat| self.cluster.kill(*seat))?;
            }
            (Harm::Pause, _) => {
                seats.iter().try_for_each(|seat| self.cluster.pause(*seat))?;
                self.tell_paused(fault.on == On::Gateway);
            }
            (harm, Some(net)) => self.cut(net, harm, &seats)?,
            (_, None) => unreachable!("a network is made for a nemesis that cuts"),
        }
        Ok(UnderWay { fault, seats, text, term })
    }

    fn end(&mut self, under_way: UnderWay) -> Result<(), HarmError> {
        let UnderWay { fault, seats, text, term } = under_way;
        match (fault.harm, self.net) {
            (Harm::Kill, _) if fault.on == On::All => self.start_all()?,
            (Harm::Kill, _) => seats.iter().try_for_each(|seat| self.restart(*seat))?,
            (Harm::Pause, _) => {
                seats.iter().try_for_each(|seat| self.cluster.resume(*seat))?;
                self.tell_paused(false);
                if fault.on == On::Gateway && self.contested {
                    // Time for what it had under way to try to land.
                    thread::sleep(WOKEN);
                    seats.iter().try_for_each(|seat| self.restart(*seat))?;
                }
            }
            (_, Some(net)) => net.heal()?,
            (_, None) => unreachable!("a network is made for a nemesis that cuts"),
        }
        let elected = match (term, self.term()) {
            (Some(before), Some(after)) if after > before => {
                format!("; meta term {before} -> {after}")
            }
            _ => String::new(),
        };
        self.recorder.nemesis(Op::Heal, format!("end of: {text}{elected}"));
        Ok(())
    }

    fn tell_paused(&self, is_paused: bool) {
        if let Some(gateway) = self.gateway {
            gateway.is_paused.store(is_paused, Ordering::SeqCst);
        }
    }

    fn restart(&mut self, seat: Seat) -> Result<(), HarmError> {
        if self.cluster.is_running(seat) {
            self.cluster.kill(seat)?;
        }
        self.with_attach(|cluster| cluster.restart(seat))
    }

    fn start_all(&mut self) -> Result<(), HarmError> {
        self.with_attach(Cluster::start_all)
    }

    /// A gateway that is down attaches anew when `start` starts it, which the history has to say.
    fn with_attach(
        &mut self,
        start: impl FnOnce(&mut Cluster) -> Result<(), ClusterError>,
    ) -> Result<(), HarmError> {
        let gateway = self.cluster.seats().find(|seat| matches!(seat, Seat::Gateway(_)));
        let is_down = gateway.is_some_and(|seat| !self.cluster.is_running(seat));
        let Some(gateway) = self.gateway.filter(|_| is_down) else {
            return Ok(start(self.cluster)?);
        };
        let (mut voice, call) = announce_attach(self.recorder);
        gateway.session.store(voice.process(), Ordering::SeqCst);
        match start(self.cluster) {
            Ok(()) => {
                voice.ok(&call, None);
                Ok(())
            }
            Err(error) => {
                voice.info(&call, error.to_string());
                Err(error.into())
            }
        }
    }

    fn cut(&self, net: &Net, harm: Harm, seats: &[Seat]) -> Result<(), NetError> {
        let servers: Vec<_> = self.servers().collect();
        let others = || servers.iter().copied().filter(|seat| !seats.contains(seat));
        match harm {
            Harm::Halves | Harm::Isolate => {
                for inside in seats {
                    net.block(*inside, others())?;
                }
                others().try_for_each(|outside| net.block(outside, seats.iter().copied()))
            }
            Harm::Deaf => seats.iter().try_for_each(|seat| net.block(*seat, others())),
            Harm::Loss(percent) => seats.iter().try_for_each(|seat| net.lose(*seat, percent)),
            Harm::Slow(kbit) => seats.iter().try_for_each(|seat| net.slow(*seat, kbit)),
            Harm::Kill | Harm::Pause => Ok(()),
        }
    }

    fn servers(&self) -> impl Iterator<Item = Seat> {
        self.cluster.seats().filter(|seat| !matches!(seat, Seat::Gateway(_)))
    }

    /// Whom a fault hits.
    fn seats(&mut self, fault: Fault) -> Result<Vec<Seat>, HarmError> {
        let all: Vec<_> = self.cluster.seats().collect();
        let one_of = |wanted: fn(&Seat) -> bool| {
            let wanted: Vec<_> = all.iter().copied().filter(wanted).collect();
            vec![wanted[fault.pick as usize % wanted.len()]]
        };
        Ok(match fault.on {
            On::Chunkserver => one_of(|seat| matches!(seat, Seat::Chunkserver(_))),
            On::Meta => one_of(|seat| matches!(seat, Seat::Meta(_))),
            On::Gateway => one_of(|seat| matches!(seat, Seat::Gateway(_))),
            On::Server => one_of(|seat| !matches!(seat, Seat::Gateway(_))),
            On::Leader => vec![self.cluster.await_leader()?],
            // One meta node and two chunkservers: a minority of either kind, or half.
            On::All if fault.harm == Harm::Halves => {
                let metas = self.cluster.spec().metas;
                let chunkservers = self.cluster.spec().chunkservers;
                let first = fault.pick as usize % chunkservers;
                vec![
                    Seat::Meta(fault.pick as usize % metas),
                    Seat::Chunkserver(first),
                    Seat::Chunkserver((first + 1) % chunkservers),
                ]
            }
            On::All => all,
        })
    }

    fn term(&self) -> Option<u64> {
        let leader = self.cluster.leader()?;
        self.cluster.status_of(leader).ok().map(|status| status.term)
    }
}

/// Waits; false if the run was over before.
fn wait(time: Duration, is_over: &impl Fn() -> bool) -> bool {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if is_over() {
            return false;
        }
        thread::sleep(LOOK);
    }
    !is_over()
}
