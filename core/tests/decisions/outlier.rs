//! Outlier detection: ejections after sequences of failures and successes.

use std::time::Duration;

use ambit_core::model::WorkloadUid;
use ambit_core::outlier::{Detector, Effect, ServicePortKey, Settings};
use proptest::prelude::*;

use crate::build::{service_key, uid};

fn port() -> ServicePortKey {
    ServicePortKey { service: service_key("shop/cart"), port: 80 }
}

fn endpoints(count: usize) -> Vec<WorkloadUid> {
    (0..count).map(|number| uid(&format!("shop/e{number}"))).collect()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What happens: at a second, an endpoint's connection fails (`-`), is made (`+`), or time passes (`.`).
type Step = (u64, char, usize);

/// Plays the steps. Returns the effect of each, and who is ejected after it.
fn play(settings: &Settings, count: usize, steps: &[Step]) -> Vec<(Effect, Vec<usize>)> {
    let (mut health, all) = (Detector::new(settings.clone()), endpoints(count));
    let mut played = Vec::new();
    for (at, what, who) in steps {
        let now = seconds(*at);
        health.advance(now);
        let effect = match what {
            '-' => health.failed(&port(), &all[*who], &all, now),
            '+' => health.succeeded(&port(), &all[*who], now),
            _ => Effect::None,
        };
        let ejected = health.ejected();
        let out = (0..count).filter(|e| ejected.contains(&port().service, 80, &all[*e])).collect();
        played.push((effect, out));
    }
    played
}

#[test]
fn endpoints_are_ejected_after_consecutive_failures() {
    let out = |time| Effect::Ejected(seconds(time));
    let rows: Vec<(&str, usize, Vec<Step>, Effect, Vec<usize>)> = vec![
        ("two failures", 2, vec![(0, '-', 0), (0, '-', 0)], Effect::None, vec![]),
        ("three in a row", 2, vec![(0, '-', 0), (0, '-', 0), (0, '-', 0)], out(10), vec![0]),
        (
            "a success between",
            2,
            vec![(0, '-', 0), (0, '-', 0), (0, '+', 0), (0, '-', 0)],
            Effect::None,
            vec![],
        ),
        ("another's success", 2, vec![(0, '-', 0), (0, '-', 0), (0, '+', 1), (0, '-', 0)], out(10), vec![0]),
        (
            "an only endpoint",
            1,
            vec![(0, '-', 0), (0, '-', 0), (0, '-', 0), (0, '-', 0)],
            Effect::None,
            vec![],
        ),
        (
            "the share that may be ejected",
            2,
            vec![(0, '-', 0), (0, '-', 0), (0, '-', 0), (0, '-', 1), (0, '-', 1), (0, '-', 1)],
            Effect::None,
            vec![0],
        ),
        (
            "room again when one has returned",
            2,
            vec![(0, '-', 0), (0, '-', 0), (0, '-', 0), (0, '-', 1), (0, '-', 1), (0, '-', 1), (10, '-', 1)],
            out(10),
            vec![1],
        ),
        ("almost over", 2, vec![(0, '-', 0), (0, '-', 0), (0, '-', 0), (9, '.', 0)], Effect::None, vec![0]),
        ("over", 2, vec![(0, '-', 0), (0, '-', 0), (0, '-', 0), (10, '.', 0)], Effect::None, vec![]),
        (
            "a failure on trial",
            2,
            vec![(0, '-', 0), (0, '-', 0), (0, '-', 0), (10, '-', 0)],
            out(20),
            vec![0],
        ),
        (
            "a success on trial",
            2,
            vec![(0, '-', 0), (0, '-', 0), (0, '-', 0), (10, '+', 0), (11, '-', 0)],
            Effect::None,
            vec![],
        ),
        (
            "again soon after",
            2,
            vec![
                (0, '-', 0),
                (0, '-', 0),
                (0, '-', 0),
                (10, '+', 0),
                (11, '-', 0),
                (11, '-', 0),
                (11, '-', 0),
            ],
            out(20),
            vec![0],
        ),
        (
            "again after good standing",
            2,
            vec![
                (0, '-', 0),
                (0, '-', 0),
                (0, '-', 0),
                (10, '+', 0),
                (311, '-', 0),
                (311, '-', 0),
                (311, '-', 0),
            ],
            out(10),
            vec![0],
        ),
        (
            "a failure while ejected",
            2,
            vec![(0, '-', 0), (0, '-', 0), (0, '-', 0), (5, '-', 0), (10, '.', 0)],
            Effect::None,
            vec![],
        ),
        (
            "a success while ejected",
            2,
            vec![(0, '-', 0), (0, '-', 0), (0, '-', 0), (5, '+', 0)],
            Effect::Returned,
            vec![],
        ),
    ];
    for (name, count, steps, effect, ejected) in rows {
        let played = play(&Settings::default(), count, &steps);
        assert_eq!(played.last(), Some(&(effect, ejected)), "{name}");
    }
}

#[test]
fn ejection_time_doubles_up_to_the_longest() {
    let (mut health, all) = (Detector::new(Settings::default()), endpoints(2));
    let (mut now, mut times) = (seconds(0), Vec::new());
    while times.len() < 8 {
        health.advance(now);
        match health.failed(&port(), &all[0], &all, now) {
            Effect::Ejected(time) => {
                times.push(time.as_secs());
                now += time;
            }
            effect => assert_eq!(effect, Effect::None),
        }
    }
    assert_eq!(times, [10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn ejections_are_per_port_of_a_service() {
    let (mut health, all) = (Detector::new(Settings::default()), endpoints(2));
    for _ in 0..3 {
        health.failed(&port(), &all[0], &all, seconds(0));
    }
    let ejected = health.ejected();
    assert!(ejected.contains(&port().service, 80, &all[0]));
    assert!(!ejected.contains(&port().service, 81, &all[0]));
    assert!(!ejected.contains(&service_key("shop/other"), 80, &all[0]));
    assert!(ejected.affects(&port().service) && !ejected.affects(&service_key("shop/other")));
}

#[test]
fn old_failures_are_forgotten() {
    let (mut health, all) = (Detector::new(Settings::default()), endpoints(100));
    for endpoint in &all {
        health.failed(&port(), endpoint, &all, seconds(0));
    }
    assert!(!health.is_empty());
    health.advance(seconds(301));
    assert!(health.is_empty(), "failures that nothing followed");
    health.failed(&port(), &all[0], &all, seconds(302));
    health.succeeded(&port(), &all[0], seconds(303));
    assert!(health.is_empty(), "failures that a success followed");
}

proptest! {
    /// After any sequence: no more endpoints are ejected than allowed, none for longer than the longest time,
    /// and none that has not failed often enough in a row, or again on trial.
    #[test]
    fn ejections_stay_within_the_settings(
        steps in prop::collection::vec(
            (0_u64..30, prop::sample::select(vec!['-', '-', '-', '+']), 0_usize..5),
            0..120,
        ),
        percent in 0_u8..=100,
    ) {
        let settings = Settings { most_ejected_percent: percent, ..Settings::default() };
        let mut now = 0;
        let steps = steps.into_iter().map(|(pause, what, who)| {
            now += pause;
            (now, what, who)
        });
        let steps: Vec<Step> = steps.collect();
        let mut streaks = [0_u32; 5];
        let mut before: Vec<usize> = Vec::new();
        let mut ever = [false; 5];
        for ((_, what, who), (effect, ejected)) in steps.iter().zip(play(&settings, 5, &steps)) {
            prop_assert!(ejected.len() * 100 <= 5 * usize::from(percent), "{:?} of {}%", ejected, percent);
            streaks[*who] = if *what == '-' { streaks[*who] + 1 } else { 0 };
            if let Effect::Ejected(time) = effect {
                prop_assert!(time <= settings.longest_ejection && time >= settings.first_ejection);
                let again = ever[*who] && streaks[*who] > 0;
                prop_assert!(streaks[*who] >= settings.consecutive_failures || again);
                prop_assert!(!before.contains(who) || ever[*who]);
                ever[*who] = true;
            }
            for e in &ejected {
                prop_assert!(before.contains(e) || e == who, "only the one that failed is newly ejected");
            }
            before = ejected;
        }
    }
}
