//! The paths of connections.

/// How a connection reaches its destination. `Waypoint` is reserved: no connection takes it yet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Through the kernel, without the mesh.
    Native = 0,
    /// Through the kernel, between two enrolled pods of one node.
    Direct = 1,
    /// Over HBONE, from ztunnel to ztunnel.
    Tunnel = 2,
    /// Over HBONE, through a waypoint.
    Waypoint = 3,
}

impl Path {
    /// The path with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Native),
            1 => Some(Self::Direct),
            2 => Some(Self::Tunnel),
            3 => Some(Self::Waypoint),
            _ => None,
        }
    }

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
