//! The lab itself, without a mesh: its network, its capture and its clean-up.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, Protocol, ServiceSpec, eventually};
use anyhow::{Result, ensure};

const MARKER: &[u8] = b"a marker that nothing else says";

fn lab() -> Result<Lab> {
    Lab::builder()
        .plain()
        .namespace(NamespaceSpec::new("shop"))
        .pod(PodSpec::new("shop/a"))
        .pod(PodSpec::new("shop/b").node(1))
        .pod(PodSpec::new("shop/c").node(1))
        .service(ServiceSpec::new("shop/b").port(7000, 7000))
        .start()
}

/// Sends the marker over TCP and gets it back.
fn echo(lab: &Lab, from: &str, to: SocketAddr, at: &str) -> Result<()> {
    let listener = lab.pod(at).run(|| TcpListener::bind(SocketAddr::new(to.ip(), to.port())))??;
    let server = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        stream.write_all(&got)?;
        Ok(())
    });
    let mut client = lab.pod(from).run(|| TcpStream::connect(to))??;
    client.write_all(MARKER)?;
    client.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    client.read_to_end(&mut back)?;
    ensure!(back == MARKER);
    server.join().expect("the server does not panic")
}

#[test]
fn capture_sees_traffic_between_nodes() -> Result<()> {
    let lab = lab()?;
    lab.plain_service("shop/b", &lab.pod("shop/b"))?;
    for family in [Family::V4, Family::V6] {
        let b = lab.pod("shop/b").ip(family);
        let rows = [
            ("other node", "shop/a", b, "shop/b", true),
            ("same node", "shop/c", b, "shop/b", false),
            ("service", "shop/a", lab.service("shop/b", family), "shop/b", true),
        ];
        for (name, from, to, at, on_the_wire) in rows {
            let capture = lab.capture()?;
            echo(&lab, from, SocketAddr::new(to, 7000), at)?;
            let trace = capture.stop()?;
            assert_eq!(trace.holding(MARKER), if on_the_wire { 2 } else { 0 }, "{name} {family:?}");
            assert_eq!(trace.tcp_port(7000) > 0, on_the_wire, "{name} {family:?}");
        }
        let capture = lab.capture()?;
        let outside = lab.outside.ip(family);
        let receiver = lab.outside.run(|| UdpSocket::bind((outside, 53)))??;
        let a = lab.pod("shop/a");
        let sender = a.run(|| UdpSocket::bind((a.ip(family), 0)))??;
        sender.send_to(MARKER, (outside, 53))?;
        let mut buffer = [0; 100];
        let (length, from) = receiver.recv_from(&mut buffer)?;
        assert_eq!(&buffer[..length], MARKER);
        assert_eq!(from, sender.local_addr()?, "no address translation on the way");
        let trace = capture.stop()?;
        let udp: Vec<_> = trace.packets().filter(|packet| packet.protocol == Protocol::Udp).collect();
        assert_eq!(udp.len(), 1);
        assert_eq!((udp[0].source, udp[0].destination), (from, (outside, 53).into()));
        assert_eq!((udp[0].ttl, udp[0].payload), (63, MARKER), "one router on the way");
    }
    lab.finish()
}

#[test]
fn killed_test_leaves_nothing_behind() -> Result<()> {
    if std::env::var_os("AMBIT_LAB_VICTIM").is_some() {
        let lab = lab()?;
        let _sleeper = lab.pod("shop/a").start("sleep", &["1000"])?;
        println!("VICTIM {}", lab.prefix);
        lab.nodes[0].place.output("sh", &["-c", &format!("kill -9 {}", std::process::id())])?;
    }
    let mut victim = Command::new(std::env::current_exe()?);
    victim.args(["--exact", "killed_test_leaves_nothing_behind", "--nocapture"]).env("AMBIT_LAB_VICTIM", "1");
    let output = victim.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let prefix =
        text.lines().find_map(|line| line.strip_prefix("VICTIM ")).expect("the victim says its prefix");
    assert!(!output.status.success());
    eventually("the victim's namespaces and directory are gone", || {
        let names = std::fs::read_dir("/run/netns")?.flatten().map(|entry| entry.file_name());
        ensure!(!names.into_iter().any(|name| name.to_string_lossy().starts_with(prefix)));
        ensure!(!std::path::Path::new("/tmp/ambit-labs").join(prefix).exists());
        ensure!(!std::fs::read_to_string("/proc/mounts")?.contains(prefix));
        Ok(())
    })
}
