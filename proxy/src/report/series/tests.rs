use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{TryRecvError, channel};

use super::*;
use crate::report::tests::info;

const HOUR: Duration = Duration::from_hours(1);

fn labels(source: &str) -> Labels {
    Labels::new(&info(source, "cart"), Flag::None)
}

fn shown(all: &AllSeries) -> String {
    let mut text = Exposition::default();
    all.show(&mut text);
    text.into_own_text()
}

/// How many connections of a source are shown as opened; none if it is not shown.
fn opened(text: &str, source: &str) -> Option<u64> {
    let mine = format!("source_workload=\"{source}\"");
    let mut lines = text.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total{"));
    let line = lines.find(|line| line.contains(&mine))?;
    Some(line.rsplit_once(' ')?.1.parse().expect("a count"))
}

/// Whether a thread (a folder below `/proc`) waits for something, or has ended.
fn is_asleep(task: &Path) -> bool {
    let stat = std::fs::read_to_string(task.join("stat"));
    stat.map_or(true, |stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('R')))
}

/// Scrapes until something is as it should be.
fn until(all: &AllSeries, what: &str, is_so: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = shown(all);
        if is_so(&text) {
            return text;
        }
        assert!(Instant::now() < deadline, "{what}: {text}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn label_sets_beyond_the_limit_share_one() {
    let all = AllSeries::with_limit(1, HOUR);
    let first = all.of(labels("limit-a"));
    let second = all.of(labels("limit-c"));
    let third = all.of(labels("limit-e"));
    assert!(!Arc::ptr_eq(&first, &second), "the first keeps its own");
    assert!(Arc::ptr_eq(&second, &third), "the others share");
    let again = all.of(labels("limit-a"));
    assert!(Arc::ptr_eq(&first, &again), "a known set keeps its own series");
    second.opened();
    assert_eq!(opened(&shown(&all), "unknown"), Some(1));
}

#[test]
fn held_label_set_keeps_its_count_and_unused_one_expires() {
    let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::from_millis(20));
    let held = all.of(labels("held"));
    held.opened();
    all.of(labels("left")).opened();
    let text = shown(&all);
    assert_eq!((opened(&text, "held"), opened(&text, "left")), (Some(1), Some(1)));
    let text = until(&all, "it vanishes", |text| opened(text, "left").is_none());
    assert_eq!(opened(&text, "held"), Some(1), "held for longer than the recorder waits");
    held.opened();
    assert_eq!(opened(&shown(&all), "held"), Some(2), "its counts are not lost");
    let back = all.of(labels("left"));
    back.opened();
    assert_eq!(opened(&shown(&all), "left"), Some(1), "it begins again");
    drop((held, back));
    until(&all, "all vanish", |text| {
        opened(text, "held").or(opened(text, "left")).is_none()
            && text.contains("\nambit_metrics_label_sets 0\n")
    });
}

#[test]
fn counter_without_counts_stays_with_its_label_set() {
    let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::from_millis(20));
    let series = all.of(labels("quiet"));
    series.opened();
    // As if it were used all the time.
    series.used.store(u64::MAX, Ordering::Relaxed);
    drop(series);
    let begun = Instant::now();
    while begun.elapsed() < 10 * all.half {
        assert_eq!(opened(&shown(&all), "quiet"), Some(1));
    }
}

#[test]
fn expired_label_sets_leave_nothing() {
    let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::from_secs(3));
    let held = all.of(labels("churn-held"));
    held.opened();
    for number in 0..5000 {
        all.of(labels(&format!("churn-{number}"))).opened();
    }
    let text = shown(&all);
    assert_eq!(text.matches("istio_tcp_connections_opened_total{").count(), 5001);
    let text = until(&all, "they vanish", |text| text.contains("\nambit_metrics_label_sets 1\n"));
    assert_eq!(text.matches("istio_tcp_connections_opened_total{").count(), 1);
    assert!(text.contains(r#"source_workload="churn-held""#), "what is open stays: {text}");
    let sets = all.sets.read();
    assert!(sets.known.capacity() + sets.leaving.capacity() < 100, "{sets:?}");
}

#[test]
fn expired_label_sets_make_room_for_new_ones() {
    let all = AllSeries::with_limit(10, Duration::ZERO);
    for number in 0..100 {
        all.of(labels(&format!("room-{number}"))).opened();
        assert!(all.sets.read().len() <= 11, "{:?}", all.sets.read());
        let deadline = Instant::now() + Duration::from_secs(30);
        while all.sets.read().len() > 0 {
            shown(&all);
            assert!(Instant::now() < deadline);
        }
    }
    all.of(labels("room-last")).opened();
    assert_eq!(opened(&shown(&all), "room-last"), Some(1));
}

#[test]
fn label_set_forgotten_while_looked_up_loses_no_count() {
    const LIVES: u32 = 100;
    let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::ZERO);
    let enough = AtomicBool::new(false);
    let (mut seen, mut lives, mut last) = (0, 0, None);
    let counted = std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let mut counted = 0_u32;
            while !enough.load(Ordering::Relaxed) {
                all.of(labels("raced")).opened();
                counted += 1;
                // Pauses of all lengths, so that it is forgotten and comes back at any moment of a
                // scrape.
                std::thread::sleep(Duration::from_micros(u64::from(counted % 97) * 10));
            }
            u64::from(counted)
        });
        let deadline = Instant::now() + Duration::from_mins(1);
        while lives < LIVES && Instant::now() < deadline {
            let now = opened(&shown(&all), "raced");
            // What was shown last before it was forgotten is all that was counted in it.
            if now.is_none() && last.is_some() {
                seen += last.unwrap_or_default();
                lives += 1;
            }
            last = now;
        }
        enough.store(true, Ordering::Relaxed);
        counting.join().expect("it counts")
    });
    assert!(lives >= LIVES, "it was forgotten only {lives} times");
    seen += opened(&shown(&all), "raced").or(last).unwrap_or_default();
    assert_eq!(seen, counted);
}

#[test]
fn returning_label_set_waits_for_the_scrape_that_may_forget_it() {
    let all = AllSeries::with_limit(MAX_LABEL_SETS, Duration::ZERO);
    all.of(labels("returns")).opened();
    // A scrape that has taken it out and has not asked the recorder yet.
    let scraping = all.scraping.lock();
    all.sweep();
    all.of(labels("new")).opened();
    let (started, task) = channel();
    let (back, returned) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            started.send(std::fs::read_link("/proc/thread-self").expect("a task")).expect("a receiver");
            all.of(labels("returns")).opened();
            back.send(()).expect("the receiver waits");
        });
        let task = Path::new("/proc").join(task.recv().expect("a task"));
        while !is_asleep(&task) {
            std::thread::yield_now();
        }
        assert_eq!(returned.try_recv(), Err(TryRecvError::Empty), "it waits");
        drop(scraping);
        returned.recv().expect("it returns");
    });
    assert_eq!(opened(&shown(&all), "returns"), Some(2), "the recorder had not forgotten it");
}
