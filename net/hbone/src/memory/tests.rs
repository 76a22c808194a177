use super::{Account, Charge, EASE, LEAST, PART, STEP, limit, usage};

/// One test, because the limit is the process's. Other tests of this crate hold next to nothing.
#[test]
fn windows_shrink_with_the_room_and_bound_what_is_held() {
    const LIMIT: usize = 64 << 20;
    const MOST: u32 = 100 << 20;
    limit(LIMIT);
    let (greedy, other) = (Account::default(), Account::default());
    let connections: Vec<_> = (0..10).map(|_| greedy.connection()).collect();
    let mut charges: Vec<_> = connections.iter().map(|it| Charge::new(it.clone())).collect();
    let at_ease = LIMIT / (PART * connections.len());
    let first = connections[0].window(MOST).expect("a first window") as usize;
    assert_eq!(first, at_ease, "a wide window while there is room");
    assert_eq!(connections[0].window(MOST), None, "unchanged");
    // Every peer sends all that it may, and nobody reads.
    let mut windows = [LEAST; 10];
    for _ in 0..1000 {
        for (index, connection) in connections.iter().enumerate() {
            if let Some(window) = connection.window(MOST) {
                windows[index] = window as usize;
            }
            charges[index].set(windows[index]);
        }
    }
    let held = greedy.held();
    assert!((LIMIT / 3..=LIMIT * 5 / 8).contains(&held), "one workload holds about half: {held}");
    let next = other.connection();
    let window = next.window(MOST).expect("a first window") as usize;
    assert!(window >= EASE / 2, "there is room for the next: {window}");
    // What is read gives room again.
    charges[0].set(0);
    let open = connections[0].window(MOST).map_or(windows[0], |window| window as usize);
    assert!(open >= STEP, "{open}");
    drop(charges);
    assert_eq!(greedy.held(), 0);
    assert_eq!(connections[1].window(MOST).map(|window| window as usize), Some(at_ease), "at ease again");
    assert!(usage().1 < 1 << 20, "given back: {}", usage().1);
}
