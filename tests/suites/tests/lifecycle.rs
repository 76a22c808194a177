//! Daemons come and go: restarts under traffic, short certificates, drain, bad files, detaching, crashes.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ambit_harness::{Place, ServiceSpec, eventually, files, within};
use ambit_suites::hbone::{self, Authority, Validity};
use ambit_suites::pair::{APP, builder, targets};
use ambit_suites::{Load, Rows, Server, ask, connect, greeted};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

#[test]
fn controller_restart_drops_no_connection() -> Result<()> {
    let lab = builder().start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    let load = Load::start(&lab.pod("shop/web"), &targets(&lab));
    load.progress(50)?;
    for ending in [Signal::SIGTERM, Signal::SIGKILL] {
        lab.controller.signal(ending)?;
        lab.controller.wait()?;
        load.progress(50)?;
        lab.start_controller()?;
        eventually("the daemons are connected again", || {
            let clients = lab.controller_metrics()?.sum("ambit_controller_xds_clients", &[]);
            ensure!((clients - 2.0).abs() < 0.5, "{clients} clients");
            Ok(())
        })?;
        load.progress(20)?;
        let sent = lab.controller_metrics()?.sum("ambit_controller_xds_resources_sent_total", &[]);
        ensure!(sent.abs() < 0.5, "{sent} resources were sent to daemons that held them all");
        let name = format!("after-{}", ending.as_str().to_lowercase());
        lab.add_service(ServiceSpec::new(&format!("shop/{name}")).port(80, APP))?;
        lab.settled()?;
        load.progress(50)?;
    }
    load.stop().flawless()?;
    lab.finish()
}

#[test]
fn certificates_renew_under_load_without_failures() -> Result<()> {
    let lab = builder().certificate_ttl(Duration::from_secs(10)).start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    let own = Authority::of(&lab)?.issue(Some("spiffe://cluster.local/ns/shop/sa/probe"), Validity::Now)?;
    let (from, peer) = (lab.pod("legacy/old"), SocketAddr::new(lab.pod("shop/db").v4.into(), hbone::PORT));
    let load = Load::start(&lab.pod("shop/web"), &targets(&lab));
    let mut seen = BTreeSet::new();
    within(Duration::from_mins(2), "four certificates after each other", || {
        seen.insert(hbone::shown_certificate(&from, peer, &own)?);
        ensure!(seen.len() >= 4, "{} so far", seen.len());
        Ok(())
    })?;
    load.progress(50)?;
    load.stop().flawless()?;
    lab.finish()
}

#[test]
fn certificates_outlive_the_controller_until_they_expire() -> Result<()> {
    let lab = builder().certificate_ttl(Duration::from_secs(10)).start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    let (web, to) = (lab.pod("shop/web"), targets(&lab)[0]);
    ask(&web, to)?;
    lab.controller.kill()?;
    ask(&web, to).context("the old certificate serves while no new one is to be had")?;
    eventually("an expired certificate serves no more", || match ask(&web, to) {
        Ok(_) => bail!("it still works"),
        Err(_) => Ok(()),
    })?;
    lab.start_controller()?;
    within(Duration::from_mins(1), "it works again", || ask(&web, to).map(drop))?;
    lab.finish()
}

#[test]
fn daemon_drains_before_it_exits() -> Result<()> {
    let lab = builder().drain_timeout(Duration::from_mins(1)).start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    let (web, to) = (lab.pod("shop/web"), targets(&lab)[0]);
    let mut table = Rows::new();
    for (name, node) in [("the client's daemon", 0), ("the server's daemon", 1)] {
        table.row(name, || {
            let mut stream = greeted(&web, to)?;
            let daemon = &lab.nodes[node].ztunnel;
            daemon.signal(Signal::SIGTERM)?;
            eventually("it is not ready any more, or takes nothing new", || match ask(&web, to) {
                Ok(_) => bail!("a new connection works"),
                Err(_) => Ok(()),
            })?;
            for _ in 0..20 {
                stream.write_all(b"still here").context("failed to write on the open connection")?;
                let mut echo = [0; 10];
                stream.read_exact(&mut echo).context("failed to read on the open connection")?;
            }
            daemon.check().context("it waits for the open connection")?;
            stream.shutdown(Shutdown::Write)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).context("failed to read to the end of the open connection")?;
            let status = daemon.wait().context("it ends when its last connection has")?;
            ensure!(status.success(), "it ended with {status}");
            lab.nodes[node].start()?;
            eventually("the next daemon serves", || ask(&web, to).map(drop))
        });
    }
    table.finish();
    lab.finish()
}

/// As in a surge: the next daemon becomes ready while the one before it still carries connections.
#[test]
fn two_daemons_overlap_and_no_connection_is_refused() -> Result<()> {
    let lab = builder().drain_timeout(Duration::from_mins(1)).start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    let (web, to) = (lab.pod("shop/web"), targets(&lab)[0]);
    let mut table = Rows::new();
    for (name, node) in [("the client's daemon", 0), ("the server's daemon", 1)] {
        table.row(name, || {
            let node = &lab.nodes[node];
            let mut held = greeted(&web, to)?;
            let mut echoes = |when: &str| -> Result<()> {
                held.write_all(b"still here").with_context(|| format!("{when}: writing"))?;
                held.read_exact(&mut [0; 10]).with_context(|| format!("{when}: reading"))
            };
            let asking = Asking::start(&web.place, to);
            asking.progress(20)?;
            let second = node.surge()?;
            echoes("both daemons run")?;
            asking.progress(20)?;
            node.ztunnel.signal(Signal::SIGTERM)?;
            asking.progress(20)?;
            echoes("the first one drains")?;
            node.ztunnel.check().context("the first one waits for its connection")?;
            drop(held);
            let status = node.ztunnel.wait().context("it ends when its last connection has")?;
            ensure!(status.success(), "the first one ended with {status}");
            asking.progress(20)?;
            let failures = asking.stop();
            ensure!(failures.is_empty(), "{}", failures.join("; "));
            let status = second.stop()?;
            ensure!(status.success(), "the second one ended with {status}");
            node.start()?;
            eventually("the next daemon serves", || ask(&web, to).map(drop))
        });
    }
    table.finish();
    lab.finish()
}

/// New connections, one after the other.
struct Asking {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Asking {
    fn start(from: &Place, to: SocketAddr) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (from, ends, counts) = (from.clone(), stop.clone(), answers.clone());
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                match ask(&from, to) {
                    Ok(_) => drop(counts.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failures.push(format!("{error:#}")),
                }
            }
            failures
        });
        Self { stop, answers, thread }
    }

    /// Waits for more answers.
    fn progress(&self, more: usize) -> Result<()> {
        let enough = self.answers.load(Ordering::Relaxed) + more;
        eventually("connections are answered", || {
            let answers = self.answers.load(Ordering::Relaxed);
            ensure!(answers >= enough, "{answers} of {enough}");
            Ok(())
        })
    }

    /// What failed.
    fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| vec!["the thread panicked".to_owned()])
    }
}

#[test]
fn drain_ends_at_its_timeout() -> Result<()> {
    let lab = builder().drain_timeout(Duration::from_secs(1)).start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    let mut stream = connect(&lab.pod("shop/web"), targets(&lab)[0])?;
    stream.read_exact(&mut [0])?;
    let status = lab.nodes[0].ztunnel.stop()?;
    assert!(status.success(), "it ended with {status}");
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    assert!(!matches!(&end, Err(error) if error.kind() == ErrorKind::WouldBlock), "the connection hangs");
    lab.finish()
}

const BAD: &[(&str, &str)] = &[
    ("not YAML", "kind: [unclosed"),
    (
        "a field of the wrong type",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: \
         guard}\nspec: {action: 7}\n",
    ),
    (
        "an unknown action",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: \
         guard}\nspec: {action: PERHAPS}\n",
    ),
];

#[test]
fn bad_file_is_reported_and_last_good_state_stays() -> Result<()> {
    let lab = builder().start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    let (web, old, to) = (lab.pod("shop/web"), lab.pod("legacy/old"), targets(&lab)[0]);
    let guard = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, \
                 name: guard}\nspec: {action: ALLOW, rules: [{from: [{source: {namespaces: [shop]}}]}]}\n";
    let as_guarded = || {
        ask(&web, to).context("who may talk does")?;
        match ask(&old, to) {
            Ok(_) => bail!("who may not talk does"),
            Err(_) => Ok(()),
        }
    };
    lab.apply("guard", guard)?;
    eventually("the policy is enforced", as_guarded)?;
    let mut table = Rows::new();
    for (name, yaml) in BAD {
        table.row(name, || {
            let mark = lab.controller.log_mark();
            lab.apply("guard", yaml)?;
            eventually("the controller reports it in /debug and its log", || {
                let debug = lab.controller_get(15000, "/debug")?;
                ensure!(debug.contains("guard"), "/debug says {debug}");
                ensure!(lab.controller.log_since(mark).contains("guard"), "the log does not mention it");
                Ok(())
            })?;
            as_guarded()?;
            // Also a restarted controller, and daemons that reconnect.
            lab.controller.stop()?;
            lab.start_controller()?;
            lab.add_service(ServiceSpec::new(&format!("shop/marker-{}", mark % 100_000)).port(80, APP))?;
            lab.settled()?;
            as_guarded()?;
            lab.apply("guard", guard)?;
            eventually("/debug forgets it when it is good again", || {
                let debug = lab.controller_get(15000, "/debug")?;
                ensure!(!debug.contains("guard"), "/debug says {debug}");
                Ok(())
            })
        });
    }
    table.row("a removed file is no bad file", || {
        lab.remove("guard")?;
        eventually("the policy is gone", || ask(&old, to).map(drop))
    });
    table.finish();
    lab.finish()
}

#[test]
fn files_with_secrets_have_mode_0600() -> Result<()> {
    let lab = builder().start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    ask(&lab.pod("shop/web"), targets(&lab)[0])?;
    let tokens = lab.nodes.iter().map(|node| -> Result<String> {
        let text = std::fs::read_to_string(node.dir.join("bootstrap.yaml"))?;
        let token = text.lines().find_map(|line| line.strip_prefix("token: ")).context("no token")?;
        Ok(token.trim_matches(['"', '\'']).to_owned())
    });
    let tokens: Vec<String> = tokens.collect::<Result<_>>()?;
    let mut keepers = BTreeSet::new();
    for file in files(lab.dir())? {
        // Pins and sockets hold no text.
        let Ok(bytes) = std::fs::read(&file) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        if text.contains("PRIVATE KEY") || tokens.iter().any(|token| text.contains(token)) {
            let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{} holds a secret", file.display());
            keepers.insert(file.strip_prefix(lab.dir())?.display().to_string());
        }
    }
    let expected = ["node0/bootstrap.yaml", "node1/bootstrap.yaml", "state/ca.pem"].map(str::to_owned);
    assert_eq!(keepers, BTreeSet::from(expected), "workloads' keys are only in memory");
    lab.finish()
}

#[test]
fn unreachable_pod_is_an_error_within_the_timeout() -> Result<()> {
    let lab = builder().start()?;
    let _server = Server::start(&lab.pod("shop/db"), "shop/db", APP)?;
    let (web, db) = (lab.pod("shop/web"), lab.pod("shop/db"));
    ask(&web, targets(&lab)[0])?;
    db.netns.ip("link set eth0 down\n")?;
    let mut table = Rows::new();
    for to in targets(&lab) {
        table.row(&to.to_string(), || {
            // `ask` has a deadline for reading: that would be another error.
            let error = match connect(&web, to).and_then(|mut stream| Ok(stream.read(&mut [0])?)) {
                Ok(length) => bail!("it ends with {length} bytes"),
                Err(error) => error,
            };
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            ensure!(kind == Some(ErrorKind::ConnectionReset), "it ends with {error:#}");
            Ok(())
        });
    }
    table.finish();
    lab.finish()
}
