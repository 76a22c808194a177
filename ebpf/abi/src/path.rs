//! The paths a connection may take.

/// How a connection travels. `Direct` and `Waypoint` are not taken yet; their places are.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// The kernel, untouched.
    Native = 0,
    /// The kernel, between two enrolled pods of one node.
    Direct = 1,
    /// HBONE, from ztunnel to ztunnel.
    Tunnel = 2,
    /// HBONE, through a waypoint.
    Waypoint = 3,
}

impl Path {
    /// The stable name, for logs, metrics and statuses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
            Self::Waypoint => "waypoint",
        }
    }
}
