use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

/// Set in the process that is the daemon of the second test.
const CHILD: &str = "AMBIT_TEST_DRAINS_FOR_EVER";

fn kill(signal: &str, process: u32) {
    let status = Command::new("/bin/kill").args([signal, &process.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

#[tokio::test]
async fn sigterm_and_sigint_start_the_drain() {
    // One process, so one after the other; the drain's second signal would end it.
    let mut shutdown = Shutdown::install().expect("handlers");
    kill("-INT", std::process::id());
    assert_eq!(shutdown.recv().await, "SIGINT");
    let drain = Drain::new();
    kill("-TERM", std::process::id());
    assert_eq!(shutdown.drain(&drain).await, "SIGTERM");
    assert!(drain.is_started());
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn second_signal_exits_at_once() {
    if std::env::var_os(CHILD).is_some() {
        return drain_for_ever();
    }
    let child = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "signals::tests::second_signal_exits_at_once", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn();
    let mut daemon = Daemon(child.expect("this test runs again"));
    let output = daemon.0.stdout.take().expect("piped");
    let mut lines = BufReader::new(output).lines().map(|line| line.expect("text"));
    assert!(lines.any(|line| line.contains("taken over")));
    kill("-TERM", daemon.0.id());
    assert!(lines.any(|line| line.contains("draining after SIGTERM")));
    kill("-INT", daemon.0.id());
    assert_eq!(daemon.0.wait().expect("it ends").code(), Some(130));
}

fn drain_for_ever() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let shutdown = Shutdown::install().expect("handlers");
        println!("taken over");
        let signal = shutdown.drain(&Drain::new()).await;
        println!("draining after {signal}");
        std::future::pending::<()>().await;
    });
}
