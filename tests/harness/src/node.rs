//! A node of the lab and its ztunnel.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::enrol::Enrolment;
use crate::http;
use crate::maps;
use crate::metrics::Metrics;
use crate::pod::{Place, Pod};
use crate::wait;

const ADMIN: u16 = 15000;
pub(crate) const METRICS: u16 = 15020;
pub(crate) const READINESS: u16 = 15021;
/// From the ports of a daemon to those of the one beside it.
const SURGE: u16 = 100;

/// A node: a namespace with routes, a daemon, and the pods that it enrols there.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub place: Place,
    /// Not running in a lab without a mesh.
    pub ztunnel: Daemon,
    /// Names the daemon's programs and maps.
    pub instance: String,
    /// Its files: configuration, bootstrap, run directory.
    pub dir: PathBuf,
    /// Its pins.
    pub bpffs: PathBuf,
    pub(crate) enrolled: Mutex<Vec<Pod>>,
    pub(crate) enrolment: Mutex<Option<Enrolment>>,
}

impl Node {
    /// Starts the daemon, enrols the node's pods, and waits until it is ready.
    pub fn start(&self) -> Result<()> {
        self.ztunnel.spawn()?;
        self.up()?;
        self.enrol_all()?;
        self.ready()
    }

    /// Waits until the daemon lacks nothing but the pods that its predecessor had enrolled.
    pub fn up(&self) -> Result<()> {
        wait::eventually(&format!("ztunnel on {} is up", self.name), || {
            self.ztunnel.check()?;
            let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), READINESS);
            let answer = http::get(&self.place.netns, address, "/healthz/ready")?;
            let state: Value = serde_json::from_str(&answer.body)?;
            let conditions = state["conditions"].as_object().context("no conditions")?;
            let lacking = |(name, condition): &(&String, &Value)| *name != "pods" && condition["met"] != true;
            ensure!(!conditions.iter().any(|condition| lacking(&condition)), "{state}");
            Ok(())
        })
        .with_context(|| self.ztunnel.tail(40))
    }

    /// SIGTERM, its end, and a new daemon, ready, with the same pods.
    pub fn restart(&self) -> Result<()> {
        let status = self.ztunnel.stop()?;
        ensure!(status.success(), "ztunnel on {} ended with {status}\n{}", self.name, self.ztunnel.tail(40));
        self.start()
    }

    /// Starts a second daemon beside the first, tells it the pods as an agent does that sees a new socket,
    /// and waits until it is ready: so begins a surge. Its own servers listen elsewhere, because both are
    /// in one namespace here.
    pub fn surge(&self) -> Result<Daemon> {
        let config = self.dir.join("ztunnel-surge.yaml");
        let text =
            std::fs::read_to_string(self.ztunnel.config()).context("failed to read the configuration")?;
        let servers = format!(
            "admin: 127.0.0.1:{}\nmetrics: 127.0.0.1:{}\nreadiness: 127.0.0.1:{}\n",
            ADMIN + SURGE,
            METRICS + SURGE,
            READINESS + SURGE
        );
        std::fs::write(&config, text + &servers).context("failed to write the configuration")?;
        let daemon = self.ztunnel.beside(&format!("the second ztunnel on {}", self.name), config);
        let before = self.socket().metadata().context("no enrolment socket")?.ino();
        daemon.spawn()?;
        wait::eventually("the second daemon has a socket", || {
            daemon.check()?;
            ensure!(self.socket().metadata()?.ino() != before, "it is the first one's");
            Ok(())
        })?;
        self.enrol_all()?;
        wait::eventually("the second daemon is ready", || {
            daemon.check()?;
            self.get(READINESS + SURGE, "/healthz/ready").map(drop)
        })
        .with_context(|| daemon.tail(40))?;
        Ok(daemon)
    }

    /// Waits until the daemon says that it is ready.
    pub fn ready(&self) -> Result<()> {
        wait::eventually(&format!("ztunnel on {} is ready", self.name), || {
            self.ztunnel.check()?;
            self.get(READINESS, "/healthz/ready").map(drop)
        })
        .with_context(|| self.ztunnel.tail(40))
    }

    /// Sends the whole list of pods, as a CNI plugin does after a (re)connect.
    pub fn enrol_all(&self) -> Result<()> {
        let enrolment = Enrolment::connect(&self.socket())?;
        for pod in self.enrolled.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            enrolment.add(pod)?;
        }
        enrolment.snapshot_sent()?;
        *self.enrolment.lock().unwrap_or_else(PoisonError::into_inner) = Some(enrolment);
        Ok(())
    }

    /// Enrols one more pod.
    pub fn enrol(&self, pod: &Pod) -> Result<()> {
        self.enrolled.lock().unwrap_or_else(PoisonError::into_inner).push(pod.clone());
        match &*self.enrolment.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(enrolment) => enrolment.add(pod),
            None => Ok(()),
        }
    }

    /// Releases a pod.
    pub fn release(&self, pod: &Pod) -> Result<()> {
        let uid = pod.spec.uid();
        self.enrolled.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other.spec.uid() != uid);
        match &*self.enrolment.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(enrolment) => enrolment.delete(pod),
            None => Ok(()),
        }
    }

    /// The enrolment socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/enrol.sock")
    }

    /// `ztunnel detach`: removes the instance from the kernel.
    pub fn detach(&self) -> Result<()> {
        let output = self.ztunnel.command("detach").output().context("failed to run ztunnel detach")?;
        ensure!(
            output.status.success(),
            "ztunnel detach: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(())
    }

    /// Where the instance's pins are.
    pub fn pins(&self) -> PathBuf {
        self.bpffs.join(&self.instance)
    }

    /// How many entries each of the instance's hash maps has, by the map's name. Read from the kernel, not
    /// from the daemon.
    pub fn map_entries(&self) -> Result<BTreeMap<String, usize>> {
        maps::entries(&self.pins())
    }

    /// Removes every entry of one of the instance's maps, behind the daemon's back; returns how many there
    /// were.
    pub fn clear_map(&self, name: &str) -> Result<usize> {
        maps::clear(&self.pin(name)?)
    }

    /// The pin whose name is this, or begins with it.
    pub fn pin(&self, name: &str) -> Result<PathBuf> {
        for version in std::fs::read_dir(self.pins())? {
            for pin in std::fs::read_dir(version?.path())? {
                let path = pin?.path();
                let found = path.file_name().is_some_and(|found| {
                    let found = found.to_string_lossy();
                    found == name || found.starts_with(&format!("{name}-"))
                });
                if found {
                    return Ok(path);
                }
            }
        }
        anyhow::bail!("{} has no pin {name}", self.name)
    }

    /// What the daemon counts.
    pub fn metrics(&self) -> Result<Metrics> {
        self.get(METRICS, "/metrics").map(|text| Metrics::parse(&text))
    }

    /// What the daemon knows, as JSON.
    pub fn config_dump(&self) -> Result<Value> {
        serde_json::from_str(&self.get(ADMIN, "/config_dump")?).context("failed to parse /config_dump")
    }

    /// The open connections, as JSON.
    pub fn connections(&self) -> Result<Value> {
        serde_json::from_str(&self.get(ADMIN, "/connections")?).context("failed to parse /connections")
    }

    /// The access log's and other records since a mark, each a JSON object.
    pub fn records_since(&self, mark: u64) -> Vec<Value> {
        self.ztunnel.log_since(mark).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// `GET` on one of the daemon's ports.
    pub fn get(&self, port: u16, path: &str) -> Result<String> {
        self.ztunnel.get(port, path)
    }
}
