//! Addresses in maps: always IPv6, with IPv4 in its v4-mapped form, in words of network byte order.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address. IPv4 is `::ffff:a.b.c.d`, so that both families share one map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Address(pub [u32; 4]);

/// The third word of a v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// An IPv4 address, given in network byte order as the kernel has it.
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

    /// Whether a connection to it stays in the network namespace: 127.0.0.0/8, `::1`, and the unspecified
    /// addresses, which `connect()` treats as loopback.
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

    /// The 16 bytes of the IPv6 or v4-mapped address.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [first, second, third, fourth] = self.0;
        let words = [first.to_ne_bytes(), second.to_ne_bytes(), third.to_ne_bytes(), fourth.to_ne_bytes()];
        let mut octets = [0; 16];
        let mut index = 0;
        while index < 16 {
            octets[index] = words[index / 4][index % 4];
            index += 1;
        }
        octets
    }

    /// With a port.
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
        Ipv6Addr::from(address.octets()).into()
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
            ("other of 127/8", "127.200.0.9", "127.200.0.9", true),
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
