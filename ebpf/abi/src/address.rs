//! Addresses as maps hold them: always IPv6, IPv4 in its v4-mapped form, words in network byte order.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address; IPv4 is held as `::ffff:a.b.c.d`, so that both families share one map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u32; 4]);

/// The third word of a v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// An IPv4 address, given as the kernel holds it (network byte order).
    #[inline(always)]
    pub const fn mapped(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The IPv4 address, in network byte order, if it is one.
    #[inline(always)]
    pub const fn v4(self) -> Option<u32> {
        match self.0 {
            [0, 0, MAPPED, word] => Some(word),
            _ => None,
        }
    }

    /// Whether a connection to it stays within the namespace: 127.0.0.0/8, `::1`, and the unspecified
    /// addresses, which `connect()` takes for loopback.
    #[inline(always)]
    pub const fn is_local(self) -> bool {
        match self.v4() {
            Some(word) => word == 0 || u32::from_be(word) >> 24 == 127,
            None => {
                self.0[0] == 0
                    && self.0[1] == 0
                    && self.0[2] == 0
                    && (self.0[3] == 0 || self.0[3] == 1_u32.to_be())
            }
        }
    }

    /// Together with a port.
    pub fn with_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.into(), port)
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let (words, _) = octets.as_chunks::<4>();
        Self([0, 1, 2, 3].map(|index: usize| u32::from_ne_bytes(words[index])))
    }
}

impl From<Address> for IpAddr {
    /// In canonical form: a v4-mapped address comes out as IPv4.
    fn from(address: Address) -> Self {
        if let Some(word) = address.v4() {
            return Ipv4Addr::from_bits(u32::from_be(word)).into();
        }
        let bits = address.0.iter().fold(0_u128, |bits, word| bits << 32 | u128::from(u32::from_be(*word)));
        Ipv6Addr::from_bits(bits).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_and_locality() {
        let rows = [
            ("IPv4", "10.1.2.3", "10.1.2.3", false),
            ("mapped", "::ffff:10.1.2.3", "10.1.2.3", false),
            ("IPv6", "2001:db8::15", "2001:db8::15", false),
            ("loopback", "127.0.0.1", "127.0.0.1", true),
            ("the whole of 127/8", "127.200.0.9", "127.200.0.9", true),
            ("mapped loopback", "::ffff:127.0.0.1", "127.0.0.1", true),
            ("IPv6 loopback", "::1", "::1", true),
            ("unspecified", "0.0.0.0", "0.0.0.0", true),
            ("IPv6 unspecified", "::", "::", true),
            ("deprecated IPv4-compatible", "::10.1.2.3", "::a01:203", false),
            ("starts like loopback", "0:0:0:1::1", "0:0:0:1::1", false),
        ];
        for (name, text, canonical, local) in rows {
            let address = Address::from(text.parse::<IpAddr>().expect("an address"));
            assert_eq!(IpAddr::from(address), canonical.parse::<IpAddr>().expect("an address"), "{name}");
            assert_eq!(address.is_local(), local, "{name}");
        }
        assert_eq!(Address::mapped(u32::from_ne_bytes([10, 0, 0, 1])).0[3].to_ne_bytes(), [10, 0, 0, 1]);
    }
}
