//! What applications rely on, row by row: each has a server's and a client's part, and each part reports what
//! it observed.
//!
//! An observation holds nothing that differs between two runs on the same network (no times, no ports), so
//! that runs with and without a mesh are compared for equality. The parts keep step over the connection
//! itself, never by time.

mod bytes;
mod close;
mod connect;
mod many;
mod part;
mod readiness;

pub use part::Row;

/// Every row.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    [connect::ROWS, close::ROWS, bytes::ROWS, readiness::ROWS, many::ROWS].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    /// Every row works between two sockets on loopback, where nothing stands between.
    #[test]
    fn rows_work_on_loopback() {
        for address in
            [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))]
        {
            // The long row of 1 GiB and the crowd have the suite to themselves.
            for row in
                super::rows().filter(|row| !row.name.starts_with("gibibyte") && row.name != "two_thousand")
            {
                let listener = (row.listen)(address).expect(row.name);
                let to = listener.local_addr().ok().and_then(|a| a.as_socket()).expect(row.name);
                let server = std::thread::spawn(move || (row.server)(&listener));
                let client = (row.client)(to);
                assert!(client.is_ok(), "{} as client: {client:?}", row.name);
                let server = server.join().expect("no panic");
                assert!(server.is_ok(), "{} as server: {server:?}", row.name);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = super::rows().map(|row| row.name).collect();
        assert_eq!(names.len(), super::rows().count());
    }
}
