//! Giving freed memory back to the system: [`follow`].
//!
//! glibc keeps what was freed for the next allocations, for good: after a flood the process would stay as
//! large as it was. What it can give back is looked at periodically, from a thread that may block.

#![expect(unsafe_code, reason = "calls of the C library that no crate wraps")]

use std::time::Duration;

/// How often freed memory is looked at. Memory is to be given back within a minute.
const INTERVAL: Duration = Duration::from_secs(10);
/// Less than this stays for the next allocations.
const KEPT: usize = 16 << 20;

/// Gives freed memory back while there is much of it; does not return.
pub async fn follow() {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // It takes the allocator's locks, for as long as there is much to give back.
        let _unjoined = tokio::task::spawn_blocking(trim_if_worthwhile).await;
    }
}

#[cfg(target_env = "gnu")]
fn trim_if_worthwhile() {
    let Some(resident) = resident() else { return };
    // SAFETY: takes only the allocator's own locks.
    let info = unsafe { libc::mallinfo2() };
    let used = info.uordblks + info.hblkhd;
    // What is resident and not in use. Code and stacks are among it; they are small.
    if resident > used + KEPT {
        // SAFETY: as above.
        unsafe { libc::malloc_trim(0) };
        let now = self::resident().unwrap_or_default();
        tracing::debug!(used, before = resident, now, "freed memory given back");
    }
}

#[cfg(not(target_env = "gnu"))]
fn trim_if_worthwhile() {}

/// How many bytes of the process are in memory.
#[cfg(target_env = "gnu")]
fn resident() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: takes a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    Some(pages * page)
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::{KEPT, resident, trim_if_worthwhile};

    #[test]
    fn freed_memory_is_given_back() {
        // Of a size that the allocator takes from its heaps, with one in use between any two others.
        let mut pieces: Vec<Option<Vec<u8>>> = (0..4096).map(|_| Some(vec![1_u8; 64 << 10])).collect();
        let full = resident().expect("a size");
        pieces.iter_mut().step_by(64).for_each(|piece| *piece = piece.take().map(|_| vec![1_u8; 16]));
        let kept: Vec<_> = pieces.into_iter().step_by(64).collect();
        trim_if_worthwhile();
        let now = resident().expect("a size");
        assert!(full > 4096 * (64 << 10), "{full}");
        assert!(now < full / 4 + KEPT, "{now} of {full} bytes are kept, for {} small pieces", kept.len());
    }
}
