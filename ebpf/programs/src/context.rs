//! Reading and writing fields of hooks' contexts. The verifier requires a constant offset and width for each
//! access, but the compiler may join accesses of two branches into one with a computed offset. So the
//! instructions are written in assembly.

use core::arch::asm;

use ambit_abi::Address;

/// Reads the four bytes at an offset.
///
/// # Safety
/// The pointer must be the hook's context, and the offset that of a field of four bytes.
#[inline(always)]
pub unsafe fn load<const OFFSET: usize>(context: *const impl Sized) -> u32 {
    // SAFETY: the caller's obligation. The same read: what differs is what the value may be used for.
    unsafe { load_pointer::<OFFSET>(context) as u32 }
}

/// Reads the eight bytes at an offset.
///
/// # Safety
/// The pointer must be the hook's context, and the offset that of a field of eight bytes.
#[inline(always)]
pub unsafe fn load_long<const OFFSET: usize>(context: *const impl Sized) -> u64 {
    let value: u64;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{value} = *(u64 *)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const OFFSET,
            options(nostack, readonly),
        );
    }
    value
}

/// Reads a field of four bytes that the verifier takes for a pointer into the packet.
///
/// # Safety
/// The pointer must be the hook's context, and the offset that of such a field.
#[inline(always)]
pub unsafe fn load_pointer<const OFFSET: usize>(context: *const impl Sized) -> usize {
    let value: u64;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{value} = *(u32 *)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const OFFSET,
            options(nostack, readonly),
        );
    }
    value as usize
}

/// Writes the four bytes at an offset.
///
/// # Safety
/// The pointer must be the hook's context, and the offset that of a field of four bytes that may be written.
#[inline(always)]
pub unsafe fn store<const OFFSET: usize>(context: *mut impl Sized, value: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "*(u32 *)({context} + {offset}) = {value}",
            value = in(reg) u64::from(value),
            context = in(reg) context,
            offset = const OFFSET,
            options(nostack),
        );
    }
}

/// Reads one field: `field!(pointer, type.field)`; inside `unsafe`, as [`load`].
macro_rules! field {
    ($context:expr, $kind:ident . $field:ident) => {
        $crate::context::load::<{ core::mem::offset_of!($kind, $field) }>($context)
    };
}

/// Reads an IPv6 address: `address!(pointer, type.field)`; inside `unsafe`, as [`load`].
macro_rules! address {
    ($context:expr, $kind:ident . $field:ident) => {
        $crate::context::load_address::<
            { core::mem::offset_of!($kind, $field) },
            { core::mem::offset_of!($kind, $field) + 4 },
            { core::mem::offset_of!($kind, $field) + 8 },
            { core::mem::offset_of!($kind, $field) + 12 },
        >($context)
    };
}

pub(crate) use {address, field};

/// Reads four words.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub unsafe fn load_address<const A: usize, const B: usize, const C: usize, const D: usize>(
    context: *const impl Sized,
) -> Address {
    // SAFETY: the caller's obligation.
    unsafe { Address([load::<A>(context), load::<B>(context), load::<C>(context), load::<D>(context)]) }
}
