//! Memory that loading leaves behind: [`give_back`].

#![expect(unsafe_code, reason = "a call of the C library that no crate wraps")]

/// Gives freed memory back to the system.
///
/// aya 0.14 parses all of the kernel's types for every object it loads, also when it is then told not to use
/// them (`EbpfLoader::new`). That is 18 MB here, which the C library would keep for the thread's next
/// allocations.
pub(crate) fn give_back() {
    // SAFETY: takes the allocator's own locks and nothing else.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
