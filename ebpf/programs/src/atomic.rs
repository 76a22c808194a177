//! Atomic addition. `core`'s atomics have none on this target, so the instruction is written down; every
//! kernel has it.

use core::arch::asm;

/// Adds to a counter in a map.
///
/// # Safety
/// The pointer must be to an aligned `u64` that the kernel keeps until the program ends.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, change: i64) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {change}", counter = in(reg) counter, change = in(reg) change);
    };
}
