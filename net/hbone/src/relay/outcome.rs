//! What a relay has carried and how it ended: [`Outcome`], [`End`].

use std::{fmt, io};

use h2::Reason;

use super::traffic::Traffic;
use crate::tunnel::reset_reason;

/// What was carried, and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes from the first side to the second.
    pub sent: u64,
    /// Bytes from the second side to the first.
    pub received: u64,
    /// Why the relay ended.
    pub end: End,
}

impl Outcome {
    pub(super) fn new(traffic: &Traffic, end: End) -> Self {
        Self { sent: traffic.sent(), received: traffic.received(), end }
    }
}

/// How a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both directions came to their ends.
    Closed,
    /// The first side (a TCP connection, if the second is a tunnel) was reset or failed; the second was
    /// reset.
    First(io::Error),
    /// The second side was reset or failed; the first was reset.
    Second(io::Error),
    /// The HBONE connection under a tunnel failed; the other side was reset.
    Tunnel(h2::Error),
    /// The peer reset a tunnel; the other side was reset.
    TunnelReset(Reason),
}

impl End {
    /// Whether no side was reset.
    pub fn is_clean(&self) -> bool {
        matches!(self, Self::Closed)
    }

    pub(super) fn of_tunnel(error: h2::Error) -> Self {
        match reset_reason(&error) {
            Some(reason) => Self::TunnelReset(reason),
            None => Self::Tunnel(error),
        }
    }

    /// The first side's failure; a tunnel's own error is inside.
    pub(super) fn of_first(error: io::Error) -> Self {
        error.downcast::<h2::Error>().map_or_else(Self::First, Self::of_tunnel)
    }

    /// The second side's failure; a tunnel's own error is inside.
    pub(super) fn of_second(error: io::Error) -> Self {
        error.downcast::<h2::Error>().map_or_else(Self::Second, Self::of_tunnel)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::First(error) => write!(f, "connection reset: {error}"),
            Self::Second(error) => write!(f, "other connection reset: {error}"),
            Self::Tunnel(error) => write!(f, "tunnel broke: {error}"),
            Self::TunnelReset(reason) => write!(f, "tunnel reset: {reason}"),
        }
    }
}
