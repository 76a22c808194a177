//! Numbers by which maps name things: namespaces by the kernel's cookies, workloads by numbers of our own.

use core::fmt;

/// A network namespace, by the cookie the kernel gives it; never reused while the machine runs.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsCookie(pub u64);

/// An enrolment of a workload: the nanoseconds since boot at which it was made, so that none is ever reused.
/// Zero is nobody.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadNumber(pub u64);

impl WorkloadNumber {
    /// Nobody: not enrolled on this node, or unknown.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for NetnsCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for WorkloadNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
