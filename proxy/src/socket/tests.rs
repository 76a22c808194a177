use super::*;

#[test]
fn accepted_sockets_inherit_options_of_the_listener() {
    for family in [Family::V4, Family::V6] {
        let listener = listen(family, PeerLocation::Local).unwrap();
        listener.set_nonblocking(false).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.tcp_nodelay().unwrap(), "{family:?}");
        assert!(accepted.out_of_band_inline().unwrap(), "{family:?}");
        assert!(accepted.keepalive().unwrap(), "{family:?}");
        assert!(accepted.tcp_congestion().unwrap().starts_with(LOCAL_CONGESTION_CONTROL), "{family:?}");
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE, "{family:?}");
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL, "{family:?}");
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES, "{family:?}");
    }
}
