//! Numbers in keys of maps: network namespaces by the kernel's cookies, workloads by numbers of our own.

use core::fmt;

/// The kernel's cookie of a network namespace; never reused while the machine runs.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct NetnsCookie(pub u64);

impl NetnsCookie {
    /// No namespace has it: in counts by pod, the key of their sum.
    pub const ALL: Self = Self(0);
}

/// An enrolment of a workload. It is the time of the enrolment in nanoseconds since boot, so that no number
/// is reused.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct WorkloadNumber(pub u64);

impl WorkloadNumber {
    /// Not enrolled on this node, or unknown.
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
