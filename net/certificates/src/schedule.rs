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
/// `dice` is uniform in 0..1.
pub(super) fn renewal(remaining: Duration, dice: f64) -> Duration {
    spread(remaining / 2, 0.1, dice).max(SHORTEST_WAIT)
}

/// How long one attempt may take, so that several fit into what a renewal leaves.
pub(super) fn attempt_timeout(lifetime: Duration) -> Duration {
    (lifetime / 4).clamp(SHORTEST_WAIT, LONGEST_ATTEMPT)
}

/// Waits between attempts: doubled each time, ±25 %, shorter for short-lived certificates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self {
            next: (lifetime / 20).clamp(SHORTEST_WAIT, FIRST_WAIT),
            longest: (lifetime / 10).clamp(SHORTEST_WAIT, LONGEST_WAIT),
        }
    }

    /// The next wait. `dice` is uniform in 0..1.
    pub(super) fn wait(&mut self, dice: f64) -> Duration {
        let wait = spread(self.next, 0.25, dice).min(self.longest);
        self.next = (self.next * 2).min(self.longest);
        wait
    }
}

/// The duration, up to `share` more or less.
fn spread(duration: Duration, share: f64, dice: f64) -> Duration {
    duration.mul_f64(1.0 - share + 2.0 * share * dice.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const TEN: Duration = Duration::from_secs(10);

    #[test]
    fn renewal_is_at_half_life_give_or_take_a_tenth() {
        for (name, remaining, dice, expected) in [
            ("a day, earliest", DAY, 0.0, 38_880.0),
            ("a day, middle", DAY, 0.5, 43_200.0),
            ("a day, latest", DAY, 1.0, 47_520.0),
            ("ten seconds, latest", TEN, 1.0, 5.5),
            ("nothing left", Duration::ZERO, 0.5, 0.1),
        ] {
            let wait = renewal(remaining, dice).as_secs_f64();
            assert!((wait - expected).abs() < 1e-6, "{name}: {wait}");
        }
    }

    #[test]
    fn waits_double_up_to_a_limit_that_suits_the_lifetime() {
        for (name, lifetime, expected) in [
            ("a day", DAY, vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]),
            ("ten seconds", TEN, vec![0.5, 1.0, 1.0]),
            ("one second", Duration::from_secs(1), vec![0.1, 0.1]),
        ] {
            let mut backoff = Backoff::new(lifetime);
            let waits: Vec<f64> = expected.iter().map(|_| backoff.wait(0.5).as_secs_f64()).collect();
            assert!(waits.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{name}: {waits:?}");
        }
    }

    #[test]
    fn a_wait_is_never_beyond_the_limit() {
        let mut backoff = Backoff::new(DAY);
        for _ in 0..20 {
            assert!(backoff.wait(1.0) <= LONGEST_WAIT);
        }
    }

    #[test]
    fn several_attempts_fit_between_renewal_and_expiry() {
        // The latest renewal, then an attempt that hangs, the longest first wait, and a second attempt.
        let mut backoff = Backoff::new(TEN);
        let second = renewal(TEN, 1.0) + attempt_timeout(TEN) + backoff.wait(1.0);
        assert!(second < TEN, "{second:?}");
    }
}
