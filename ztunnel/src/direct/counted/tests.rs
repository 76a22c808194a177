use super::*;

fn bytes(number: u64) -> Bytes {
    Bytes { from_client: number, from_server: 2 * number }
}

#[test]
fn every_byte_counts_once() {
    // What was counted of it while it was open, and what is left to count at the end of 100.
    let rows: [(&str, &[u64], u64); 2] = [("never seen open", &[], 100), ("seen open", &[10, 30], 70)];
    for (name, seen, left) in rows {
        let all = Counted::default();
        for total in seen {
            let carried = all.open(7, bytes(*total));
            assert_eq!(carried.total, bytes(*total), "{name}");
            all.counted(7, carried.total);
        }
        let end = all.closed(Some(7), bytes(100));
        assert_eq!(end.total.from_client - end.counted.from_client, left, "{name}");
        assert_eq!(end.total.from_server - end.counted.from_server, 2 * left, "{name}");
        assert!(all.is_closed(7) && all.begin().contains(&7) && !all.is_closed(7), "{name}");
    }
}

#[test]
fn flows_no_longer_tracked_are_dropped() {
    let all = Counted::default();
    all.counted(1, bytes(1));
    all.counted(2, bytes(2));
    all.keep(&HashSet::from([2]));
    assert_eq!(all.open(1, bytes(3)).counted, Bytes::default());
    assert_eq!(all.open(2, bytes(3)).counted, bytes(2));
}
