//! Memory that loading an object leaves allocated: [`trim`].

#![expect(unsafe_code, reason = "a call of the C library that no crate wraps")]

/// Returns freed memory to the system.
///
/// aya 0.14 parses all of the kernel's types for every object (`EbpfLoader::new`), even if they are not used.
/// That is 18 MB, which the C library would keep for the thread's next allocations.
pub(crate) fn trim() {
    // SAFETY: takes only the allocator's own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
