//! When to renew and when to try again: pure arithmetic, so that a 10 s certificate and a 24 h one follow one
//! rule.

use std::time::Duration;

/// Back-off's first wait, for certificates that live long enough.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Back-off's longest wait.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How long one attempt may take.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(10);
/// However little lifetime a CA gives, it is not asked more often than this.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// How long after it was issued a certificate with `remaining` to live is renewed: half of it, ±10 %.
/// `chance` is uniform in 0..1.
pub(crate) fn renewal(remaining: Duration, chance: f64) -> Duration {
    spread(remaining / 2, 0.1, chance).max(SHORTEST_WAIT)
}

/// How long one attempt may take, so that several fit into what a renewal leaves.
pub(crate) fn attempt_timeout(lifetime: Duration) -> Duration {
    (lifetime / 4).clamp(SHORTEST_WAIT, LONGEST_ATTEMPT)
}

/// Waits between attempts: doubled each time, ±25 %, shorter for short-lived certificates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self {
            next: (lifetime / 20).clamp(SHORTEST_WAIT, FIRST_WAIT),
            longest: (lifetime / 10).clamp(SHORTEST_WAIT, LONGEST_WAIT),
        }
    }

    /// The next wait. `chance` is uniform in 0..1.
    pub(crate) fn wait(&mut self, chance: f64) -> Duration {
        let wait = spread(self.next, 0.25, chance).min(self.longest);
        self.next = (self.next * 2).min(self.longest);
        wait
    }
}

/// The duration, up to `share` more or less.
fn spread(duration: Duration, share: f64, chance: f64) -> Duration {
    duration.mul_f64(1.0 - share + 2.0 * share * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
