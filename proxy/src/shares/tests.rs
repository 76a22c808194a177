use super::*;

fn fill(shares: &Shares, own: &Share, count: usize) -> Vec<Held> {
    std::iter::from_fn(|| shares.take(own, count)).collect()
}

#[test]
fn greedy_workloads_leave_room_for_the_next() {
    let shares = Shares::new(1000);
    let pods: Vec<Share> = (0..5).map(|_| Share::default()).collect();
    let held: Vec<_> = pods.iter().map(|pod| fill(&shares, pod, 1)).collect();
    let counts: Vec<usize> = held.iter().map(Vec::len).collect();
    assert_eq!(counts, [500, 250, 125, 63, 31], "each half of what was left, rounded up");
    assert!(shares.take(&Share::default(), 2).is_some());
    drop(held);
    assert_eq!(shares.used.load(Ordering::Relaxed), 0, "everything is given back");
    assert!(pods.iter().all(|pod| pod.0.load(Ordering::Relaxed) == 0));
}

#[test]
fn keep_gives_back_the_rest() {
    let (shares, pod) = (Shares::new(100), Share::default());
    let mut held = shares.take(&pod, 2).expect("room");
    held.keep(1);
    assert_eq!((shares.used.load(Ordering::Relaxed), pod.0.load(Ordering::Relaxed)), (1, 1));
    held.keep(5);
    drop(held);
    assert_eq!((shares.used.load(Ordering::Relaxed), pod.0.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn refused_connection_holds_nothing() {
    let (shares, pod) = (Shares::new(10), Share::default());
    let held = fill(&shares, &pod, 3);
    assert_eq!(held.len(), 2, "a third one would make nine, and four were left");
    assert!(shares.take(&pod, 3).is_none());
    assert_eq!(shares.used.load(Ordering::Relaxed), 6);
}
