//! The process's build, processor time and memory, under the names that every Prometheus client uses, and the
//! state of its runtime.
//!
//! Entry points: [`show`] and [`show_runtime`].

use std::time::{SystemTime, UNIX_EPOCH};

use super::exposition::{Exposition, Family};

const BUILD: Family = Family::gauge("ambit_build_info", "Always 1; the labels say what runs.");
const START: Family =
    Family::gauge("process_start_time_seconds", "Start time of the process, in seconds since 1970.");
const CPU: Family =
    Family::counter("process_cpu_seconds_total", "Processor time used, in user and kernel mode.");
const MEMORY: Family = Family::gauge("process_resident_memory_bytes", "Resident memory.");
const DESCRIPTORS: Family = Family::gauge("process_open_fds", "Open file descriptors.");
const WORKERS: Family = Family::gauge("ambit_runtime_workers", "Threads that carry connections.");
const TASKS: Family = Family::gauge("ambit_runtime_tasks", "Tasks of the runtime that have not ended.");
const QUEUE: Family = Family::gauge(
    "ambit_runtime_queue_depth",
    "Tasks that wait for any worker; not those in a worker's own queue.",
);
const BUSY: Family =
    Family::counter("ambit_runtime_busy_seconds_total", "Time that the workers were not parked.");

/// Clock ticks a second in `/proc`: the same on every Linux.
const TICKS: f64 = 100.0;
const PAGE: u64 = 4096;

/// Writes the state of the process. `began`: when it started; `component`: which of Ambit's programs it is.
pub(super) fn show(component: &str, began: SystemTime, all: &mut Exposition) {
    let version = env!("CARGO_PKG_VERSION");
    all.family(&BUILD).sample(&[("component", component), ("version", version)], 1_u64);
    all.single(&START, began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    // What cannot be read is not shown.
    let mut cpu = all.family(&CPU);
    if let Some(seconds) = cpu_seconds() {
        cpu.sample(&[], seconds);
    }
    let mut memory = all.family(&MEMORY);
    if let Some(bytes) = resident_bytes() {
        memory.sample(&[], bytes);
    }
    let mut descriptors = all.family(&DESCRIPTORS);
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them reads the folder.
        descriptors.sample(&[], open.count().saturating_sub(1));
    }
}

/// Writes the state of the runtime.
pub(super) fn show_runtime(runtime: &tokio::runtime::Handle, all: &mut Exposition) {
    let metrics = runtime.metrics();
    let workers = metrics.num_workers();
    all.single(&WORKERS, workers);
    all.single(&TASKS, metrics.num_alive_tasks());
    all.single(&QUEUE, metrics.global_queue_depth());
    let busy: f64 = (0..workers).map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64()).sum();
    all.single(&BUSY, busy);
}

#[expect(clippy::cast_precision_loss, reason = "ticks stay exact for two million years")]
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold anything; user and system time are the 12th and 13th after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / TICKS)
}

fn resident_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_measured() {
        let before = cpu_seconds().expect("/proc");
        let mut sum = 0_u64;
        while cpu_seconds().expect("/proc") < before + 0.05 {
            sum = std::hint::black_box(sum + 1);
        }
        let bytes = resident_bytes().expect("/proc");
        assert!((1 << 20..1 << 36).contains(&bytes), "{bytes}");
    }

    #[tokio::test]
    async fn runtime_is_measured() {
        let mut all = Exposition::default();
        show_runtime(&tokio::runtime::Handle::current(), &mut all);
        let text = all.into_text();
        assert!(text.contains("\nambit_runtime_workers 1\n"), "{text}");
    }
}
