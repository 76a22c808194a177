//! The kernel's clock.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}
