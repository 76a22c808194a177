//! CPUs: pinning of processes, and CPU time by process ([`Meter`]).
//!
//! The kernel counts time in ticks of 10 ms; work done in soft interrupts counts for the process they
//! interrupt (this kernel has no accounting of its own for them, so ours must not add it a second time).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Every thread of a process on one CPU; threads to come inherit it.
pub(super) fn pin(process: u32, cpu: usize) -> Result<()> {
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let thread: i32 =
            entry?.file_name().to_string_lossy().parse().context("failed to parse a thread's number")?;
        sched_setaffinity(Pid::from_raw(thread), &one(cpu)?).context("failed to pin a daemon")?;
    }
    Ok(())
}

/// The calling thread on one CPU.
pub(super) fn pin_thread(cpu: usize) -> Result<()> {
    sched_setaffinity(Pid::from_raw(0), &one(cpu)?).context("failed to pin a thread")
}

/// A process's resident set, in KiB.
pub(super) fn memory(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))
        .context("failed to read its memory use")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.split_whitespace().next().context("no number")?.parse().context("failed to parse VmRSS")
}

fn one(cpu: usize) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(cpu).context("failed to choose the CPU")?;
    Ok(set)
}

/// CPU time from a moment on.
#[derive(Debug)]
pub(super) struct Meter {
    daemons: Vec<u32>,
    since: Instant,
    start: Counters,
}

/// CPU time of some while, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// The proxies'.
    pub(super) daemons: f64,
    /// Everything this process started, and the kernel's threads for soft interrupts.
    pub(super) ours: f64,
    /// Used by other processes, or stolen by the machine's host.
    pub(super) others: f64,
    /// In soft interrupts, as far as the kernel's ticks see it. Part of the above.
    pub(super) softirq: f64,
    /// What all CPUs had together.
    pub(super) available: f64,
}

/// Ticks since the machine started.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    daemons: u64,
    ours: u64,
    busy: u64,
    stolen: u64,
    softirq: u64,
}

impl Meter {
    pub(super) fn start(daemons: &[u32]) -> Result<Self> {
        let daemons = daemons.to_vec();
        let start = Counters::read(&daemons)?;
        Ok(Self { daemons, since: Instant::now(), start })
    }

    pub(super) fn read(&self) -> Result<Used> {
        let (now, elapsed) = (Counters::read(&self.daemons)?, self.since.elapsed());
        used(self.start, now, elapsed)
    }
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.daemons += other.daemons;
        self.ours += other.ours;
        self.others += other.others;
        self.softirq += other.softirq;
        self.available += other.available;
    }
}

fn used(start: Counters, end: Counters, elapsed: Duration) -> Result<Used> {
    let hertz = sysconf(SysconfVar::CLK_TCK)?.context("the kernel's ticks have no length")?;
    let tick = 1.0 / f64::from(i32::try_from(hertz)?);
    let seconds = |of: fn(&Counters) -> u64| count(of(&end).saturating_sub(of(&start))) * tick;
    let cpus = std::thread::available_parallelism()?.get();
    let ours = seconds(|counters| counters.ours);
    let stolen = seconds(|counters| counters.stolen);
    Ok(Used {
        daemons: seconds(|counters| counters.daemons),
        ours,
        others: (seconds(|counters| counters.busy) - ours).max(0.0) + stolen,
        softirq: seconds(|counters| counters.softirq),
        available: elapsed.as_secs_f64() * count(cpus as u64),
    })
}

impl Counters {
    fn read(daemons: &[u32]) -> Result<Self> {
        let processes = processes()?;
        let mut ours = BTreeSet::from([std::process::id()]);
        // Children have greater numbers than their parents, except after a wrap: go on until nothing is
        // added.
        loop {
            let before = ours.len();
            ours.extend(
                processes
                    .iter()
                    .filter(|(_, p)| ours.contains(&p.parent))
                    .map(|(id, _)| *id)
                    .collect::<Vec<_>>(),
            );
            if ours.len() == before {
                break;
            }
        }
        let sum = |keep: &dyn Fn(u32, &Process) -> bool| -> u64 {
            processes.iter().filter(|(id, p)| keep(**id, p)).map(|(_, p)| p.ticks).sum()
        };
        let stat = std::fs::read_to_string("/proc/stat").context("failed to read /proc/stat")?;
        let machine = machine(&stat).context("/proc/stat has no line of all CPUs")?;
        Ok(Self {
            daemons: sum(&|id, _| daemons.contains(&id)),
            ours: sum(&|id, process| ours.contains(&id) || process.softirq),
            ..machine
        })
    }
}

/// What the first line of /proc/stat says: user, nice, system, idle, iowait, irq, softirq, steal.
fn machine(stat: &str) -> Option<Counters> {
    let numbers: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _wait, irq, softirq, stolen, ..] = numbers[..] else { return None };
    Some(Counters { busy: user + nice + system + irq + softirq, stolen, softirq, ..Counters::default() })
}

/// A process as /proc/PID/stat shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    parent: u32,
    /// User and system time, its own and that of its children that have ended.
    ticks: u64,
    /// One of the kernel's threads for soft interrupts.
    softirq: bool,
}

fn processes() -> Result<BTreeMap<u32, Process>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").context("failed to list /proc")? {
        let name = entry?.file_name();
        let Ok(id) = name.to_string_lossy().parse() else { continue };
        // Those that end meanwhile are counted by their parents.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        found.extend(process(&stat).map(|process| (id, process)));
    }
    Ok(found)
}

fn process(stat: &str) -> Option<Process> {
    // The name stands in brackets and may hold anything.
    let (name, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Process { parent: fields.get(1)?.parse().ok()?, ticks, softirq: name.contains("(ksoftirqd/") })
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(super) fn count(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_stat_is_parsed() {
        let tail = "1 1 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 5 0 1 2 3";
        let rows = [
            ("a plain name", format!("77 (ztunnel) S 7 {tail}"), Some((7, 124, false))),
            ("a name with brackets", format!("77 (a) b) S 8 {tail}"), Some((8, 124, false))),
            ("the kernel's", format!("15 (ksoftirqd/0) S 2 {tail}"), Some((2, 124, true))),
            ("cut short", "77 (ztunnel) S 7 1".to_owned(), None),
        ];
        for (name, line, expected) in rows {
            let expected = expected.map(|(parent, ticks, softirq)| Process { parent, ticks, softirq });
            assert_eq!(process(&line), expected, "{name}");
        }
    }

    #[test]
    fn machine_stat_is_parsed() {
        let counters = machine("cpu  100 20 30 4000 50 6 7 8 0 0\ncpu0 1 2 3\n").expect("a line of all CPUs");
        assert_eq!((counters.busy, counters.stolen, counters.softirq), (163, 8, 7));
        assert!(machine("cpu 1 2").is_none());
    }

    #[test]
    fn own_processes_are_not_counted_as_foreign() {
        let meter = Meter::start(&[std::process::id()]).expect("/proc can be read");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(200) {
            std::hint::spin_loop();
        }
        let used = meter.read().expect("/proc can be read");
        // A busy machine may have let us wait, but not for all of it.
        assert!(used.ours >= 0.02 && used.daemons >= 0.02, "{used:?}");
        assert!(used.available > 0.0);
    }
}
