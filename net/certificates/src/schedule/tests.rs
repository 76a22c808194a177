use super::*;

const DAY: Duration = Duration::from_hours(24);
const TEN: Duration = Duration::from_secs(10);

#[test]
fn renewal_is_at_half_life_within_ten_percent() {
    for (name, remaining, chance, expected) in [
        ("a day, earliest", DAY, 0.0, 38_880.0),
        ("a day, middle", DAY, 0.5, 43_200.0),
        ("a day, latest", DAY, 1.0, 47_520.0),
        ("ten seconds, latest", TEN, 1.0, 5.5),
        ("nothing left", Duration::ZERO, 0.5, 0.1),
    ] {
        let wait = renewal(remaining, chance).as_secs_f64();
        assert!((wait - expected).abs() < 1e-6, "{name}: {wait}");
    }
}

#[test]
fn backoff_doubles_up_to_a_limit_by_lifetime() {
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
fn backoff_never_exceeds_its_limit() {
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
