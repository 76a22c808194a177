use std::io::{BufRead, BufReader};

use super::*;

#[test]
fn queued_lines_are_written_at_exit() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let (mut queue, flush) = start(writer).expect("a thread");
    for number in 0..100 {
        writeln!(queue, "line").expect("never fails");
        assert_eq!(queue.dropped(), 0, "{number}");
    }
    drop(flush);
    let lines =
        BufReader::new(reader).lines().take(100).filter(|line| line.as_deref().is_ok_and(|l| l == "line"));
    assert_eq!(lines.count(), 100);
}

#[test]
fn stalled_reader_does_not_block_writers() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let (mut queue, flush) = start(writer).expect("a thread");
    let line = [b"x".repeat(99), b"\n".to_vec()].concat();
    let written = 3 * QUEUED_LINES;
    let before = Instant::now();
    for _ in 0..written {
        queue.write_all(&line).expect("never fails");
    }
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    let dropped = queue.dropped();
    assert!(dropped > 0, "no queue holds them all");
    // A thread that was about to write may have taken some off.
    assert!(queue.waiting() >= 4096, "{} wait", queue.waiting());
    let before = Instant::now();
    drop(flush);
    let waited = before.elapsed();
    assert!((FLUSH_DEADLINE..10 * FLUSH_DEADLINE).contains(&waited), "{waited:?}");
    // Once it is read again, what was not dropped is there, in whole lines.
    let kept = written - usize::try_from(dropped).expect("a count");
    let lines =
        BufReader::new(reader).lines().take(kept).filter(|read| read.as_ref().is_ok_and(|l| l.len() == 99));
    assert_eq!(lines.count(), kept);
}

#[test]
fn closed_reader_does_not_block_writers() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let (mut queue, flush) = start(writer).expect("a thread");
    for _ in 0..100 {
        writeln!(queue, "line").expect("never fails");
    }
    drop(flush);
}
