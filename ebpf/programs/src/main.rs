//! Ambit's kernel programs, one file for each hook; what they share with the loader is in `ambit-abi`.
//!
//! They need only what kernel 6.1 has. Kernel structures are never read, only contexts and helpers.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod context;
mod established;
mod flows;
mod getpeername;
mod inbound;
mod maps;
mod records;
mod socket_operations;
mod sockets;

/// The kernel's licence check: some helpers are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

/// Never reached: the programs do nothing that panics, and the linker drops this.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
