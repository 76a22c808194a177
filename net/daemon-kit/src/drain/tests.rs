use tokio::time::Instant;

use super::*;

const LONG: Duration = Duration::from_hours(1);

#[tokio::test(start_paused = true)]
async fn drain_without_holders_ends_at_once() {
    let drain = Drain::new();
    let before = Instant::now();
    drain.finish(LONG).await.expect("nothing holds it");
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert!(drain.is_started());
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_holders() {
    let drain = Drain::new();
    let hold = drain.hold();
    let clone = drain.clone();
    drain.spawn(async move {
        clone.started().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
    assert_eq!(drain.holders(), 2);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        drop(hold);
    });
    let before = Instant::now();
    drain.finish(LONG).await.expect("all end in time");
    assert_eq!(before.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn holders_are_cut_at_the_deadline() {
    let drain = Drain::new();
    let holder = drain.clone();
    let cut = drain.spawn(async move {
        holder.cut().await;
        Instant::now()
    });
    let before = Instant::now();
    let error = drain.finish(Duration::from_secs(10)).await.expect_err("one does not end by itself");
    assert!(matches!(error, Error::DrainDeadline { holders: 1, .. }), "{error}");
    assert_eq!(error.to_string(), "failed to drain within 10 s: 1 tasks still running");
    assert_eq!(cut.await.expect("no panic") - before, Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn holder_that_ignores_the_cut_does_not_block() {
    let drain = Drain::new();
    let _for_ever = drain.hold();
    let before = Instant::now();
    drain.finish(Duration::from_secs(10)).await.expect_err("it never ends");
    assert_eq!(before.elapsed(), Duration::from_secs(10) + CUT_GRACE);
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_work_started_while_draining() {
    let drain = Drain::new();
    let first = drain.clone();
    drain.spawn(async move {
        first.started().await;
        let second = first.clone();
        first.spawn(async move {
            tokio::time::sleep(Duration::from_secs(7)).await;
            drop(second);
        });
    });
    let before = Instant::now();
    drain.finish(LONG).await.expect("both end");
    assert_eq!(before.elapsed(), Duration::from_secs(7));
}
