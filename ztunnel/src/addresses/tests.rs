use super::*;

#[test]
fn proc_shows_the_addresses_of_the_interfaces() {
    let shown = of_node(Some(Path::new("/proc/self/net"))).unwrap();
    assert_eq!(shown, own().unwrap());
}

#[test]
fn local_addresses_are_parsed_from_proc() {
    let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- \
                10.0.0.0/8 2 0 2\n        |-- 10.1.0.0\n           /16 link UNICAST\n        |-- \
                10.1.0.1\n           /32 host LOCAL\n        |-- 10.1.255.255\n           /32 link \
                BROADCAST\n";
    assert_eq!(local_ipv4(trie), ["10.1.0.1".parse::<Ipv4Addr>().unwrap()]);
    let table = "fd000000000000000000000000000001 02 40 00 80 eth0\n00000000000000000000000000000001 01 80 \
                 10 80 lo\n";
    let expected: Vec<Ipv6Addr> = ["fd00::1", "::1"].iter().map(|text| text.parse().unwrap()).collect();
    assert_eq!(local_ipv6(table), expected);
}

/// In a namespace of its own, where it is known which addresses there are: loopback's must be among them.
#[test]
fn loopback_is_not_an_address_of_the_node() {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
        let run = |arguments: &[&str]| {
            let status = std::process::Command::new("ip").args(arguments).status().expect("ip");
            assert!(status.success(), "ip {arguments:?}");
        };
        run(&["link", "set", "lo", "up"]);
        run(&["link", "add", "node0", "type", "veth", "peer", "name", "node1"]);
        run(&["address", "add", "192.0.2.7/24", "dev", "node0"]);
        run(&["link", "set", "node0", "up"]);
        let all: Vec<_> = getifaddrs().unwrap().filter_map(|interface| interface.address).collect();
        assert!(
            all.iter().any(|address| address.as_sockaddr_in().is_some_and(|v4| v4.ip().is_loopback())),
            "loopback has its address: {all:?}"
        );
        let v4 = |addresses: BTreeSet<IpAddr>| -> Vec<IpAddr> {
            addresses.into_iter().filter(IpAddr::is_ipv4).collect()
        };
        let node = "192.0.2.7".parse::<IpAddr>().unwrap();
        assert_eq!(v4(own().unwrap()), [node]);
        assert_eq!(v4(of_node(Some(Path::new("/proc/thread-self/net"))).unwrap()), [node]);
    })
    .join()
    .unwrap();
}
