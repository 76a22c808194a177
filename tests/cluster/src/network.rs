//! Addresses of a cluster, and the links between its machines.
//!
//! The machines are on one bridge, which lies in the control plane's network namespace. The host has one link
//! to it, with an address in the machines' subnet: that link and its route are all that the host sees, and
//! they go with the control plane.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// Which of the subnets a cluster has; no two on a machine have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subnet(pub(crate) u8);

/// The services' addresses and those of pods are the same in every cluster: they are seen only within.
pub(crate) const SERVICES: &str = "10.96.0.0/16,fd13:a3b1:fffe::/112";
pub(crate) const PODS: &str = "10.244.0.0/16,fd13:a3b1:ffff::/48";
pub(crate) const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub(crate) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// The bridge's own address: without one it takes its ports' lowest, and changes whenever a machine with a
/// lower one comes.
const BRIDGE: &str = "02:00:00:00:00:01";
/// The numbers of hosts in the subnet.
const CONTROL: u8 = 1;
const HOST: u8 = 254;
/// Node 1 is after this.
const NODES: u8 = 10;

impl Subnet {
    /// Both addresses of a host.
    fn host(self, number: u8) -> (Ipv4Addr, Ipv6Addr) {
        let v4 = Ipv4Addr::new(10, 213, self.0, number);
        let v6 = Ipv6Addr::new(0xfd13, 0xa3b1, self.0.into(), 0, 0, 0, 0, number.into());
        (v4, v6)
    }

    pub(crate) fn control(self) -> (Ipv4Addr, Ipv6Addr) {
        self.host(CONTROL)
    }

    pub(crate) fn outside(self) -> (Ipv4Addr, Ipv6Addr) {
        self.host(HOST)
    }

    /// The addresses of a node, counted from 1.
    pub(crate) fn node(self, number: u8) -> (Ipv4Addr, Ipv6Addr) {
        self.host(NODES + number)
    }

    /// The addresses of the host's end of its link.
    pub(crate) fn link(self) -> String {
        format!("ambit-c{}", self.0)
    }
}

/// The subnets of a node's pods.
pub(crate) fn pods(node: u8) -> (String, String) {
    (format!("10.244.{node}.0/24"), format!("fd13:a3b1:ffff:{node}::/64"))
}

/// Chosen subnets stay ours until the host's link is made: others wait.
pub(crate) struct Claim(#[expect(dead_code, reason = "held")] Flock<File>);

/// A subnet that is not in use on this machine.
pub(crate) fn claim() -> Result<(Subnet, Claim)> {
    let folder = File::open("/run").context("failed to open /run")?;
    let lock = Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let routes = output("ip", &["-4", "route", "show", "table", "all"])?;
    let taken = |number: u8| {
        let prefix = format!("10.213.{number}.");
        let mut words = routes.split_whitespace();
        words.any(|word| word.starts_with(&prefix) || word == "10.213.0.0/16")
    };
    let free = (0..=255).find(|number| !taken(*number));
    Ok((Subnet(free.context("all subnets below 10.213.0.0/16 are in use")?), Claim(lock)))
}

/// Makes the bridge in the control plane's namespace, and the host's link to it.
pub(crate) fn hub(control: &Machine, subnet: Subnet, id: &str) -> Result<()> {
    let (pid, link) = (control.pid()?, subnet.link());
    let ((v4, v6), (host4, host6)) = (subnet.control(), subnet.outside());
    batch(
        control,
        &format!(
            "link set lo up\nlink add br0 address {BRIDGE} type bridge forward_delay 0\nlink set br0 \
             up\naddress add {v4}/24 dev br0\naddress add {v6}/64 dev br0 nodad\n"
        ),
    )?;
    // Traffic between machines is the wire: it is not filtered.
    let quiet = "for it in /proc/sys/net/bridge/bridge-nf-call-*; do [ -e $it ] && echo 0 >$it; done; true";
    done(&mut control.run("sh", &["-c", quiet]))?;
    let text = format!(
        "link add {link} type veth peer name host netns {pid}\naddress add {host4}/24 dev {link}\naddress \
         add {host6}/64 dev {link} nodad\nlink set {link} alias {id} up\n"
    );
    feed(Command::new("ip").args(["-batch", "-"]), &text)?;
    batch(control, "link set host master br0 up\n")
}

/// Joins a node to the bridge; the routes to the others' pods are there before the others are.
pub(crate) fn join(control: &Machine, node: &Machine, subnet: Subnet, number: u8, nodes: u8) -> Result<()> {
    let (hub, pid) = (control.pid()?, node.pid()?);
    // The other end of an earlier boot may still be there.
    control.run("ip", &["link", "delete", &format!("node{number}")]).stderr(Stdio::null()).status()?;
    // Always the same hardware address: after a reboot the others need not ask again.
    let hardware = format!("02:13:d5:{:02x}:00:{number:02x}", subnet.0);
    let text = format!(
        "link add node{number} netns {hub} type veth peer name eth0 address {hardware} netns {pid}\n"
    );
    feed(Command::new("ip").args(["-batch", "-"]), &text)?;
    batch(control, &format!("link set node{number} master br0 up\n"))?;
    let ((v4, v6), (gate4, gate6)) = (subnet.node(number), subnet.control());
    let mut text = format!(
        "link set lo up\naddress add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\nlink set eth0 \
         up\nroute add default via {gate4}\nroute add default via {gate6}\n"
    );
    for other in (1..=nodes).filter(|other| *other != number) {
        text.push_str(&routes(subnet, other)?);
    }
    batch(node, &text)?;
    // The control plane reaches pods too: webhooks are called there.
    batch(control, &routes(subnet, number)?.replace("route add", "route replace"))
}

fn routes(subnet: Subnet, node: u8) -> Result<String> {
    let ((v4, v6), (pods4, pods6)) = (subnet.node(node), pods(node));
    let mut text = String::new();
    writeln!(text, "route add {pods4} via {v4}")?;
    writeln!(text, "route add {pods6} via {v6}")?;
    Ok(text)
}

/// Removes the host's link, should it be left.
pub(crate) fn unlink(subnet: Subnet, id: &str) -> Result<()> {
    let link = subnet.link();
    let alias = Path::new("/sys/class/net").join(&link).join("ifalias");
    // Another cluster may have the number by now.
    if std::fs::read_to_string(alias).is_ok_and(|alias| alias.trim_end() == id) {
        // It may go by itself at any moment: the other end did.
        Command::new("ip").args(["link", "delete", &link]).stderr(Stdio::null()).status()?;
    }
    Ok(())
}

/// `ip` commands in a machine.
fn batch(machine: &Machine, text: &str) -> Result<()> {
    feed(&mut machine.run("ip", &["-batch", "-"]), text)
}

/// Runs a command with this input.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let what = command.get_program().display().to_string();
    let mut child = command.spawn().with_context(|| format!("failed to start {what}"))?;
    let written = child.stdin.take().context("no input")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    written.with_context(|| format!("failed to write to {what}"))
}

/// Runs a command that must succeed; what it says is in the error.
pub(crate) fn done(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    bail!(
        "{} {}: {}{}",
        command.get_program().display(),
        words.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr).trim_end()
    )
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    done(Command::new(program).args(arguments))
}

/// All addresses that the apiserver's certificate is for.
pub(crate) fn apiserver_addresses(subnet: Subnet) -> Vec<IpAddr> {
    let (v4, v6) = subnet.control();
    vec![v4.into(), v6.into(), KUBERNETES_SERVICE.into(), Ipv4Addr::LOCALHOST.into()]
}
