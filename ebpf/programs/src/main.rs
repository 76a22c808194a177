//! Ambit's kernel programs, one file for each hook. The interface to the loader is in `ambit-abi`.
//!
//! They run on kernel 6.1 and later. They read contexts and call helpers, and never read kernel structures.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod clock;
mod connect;
mod context;
mod endpoints;
mod established;
mod flows;
mod getpeername;
mod handoffs;
mod inbound;
mod links;
mod log;
mod maps;
mod operation;
mod packet;
mod probes;
mod quota;
mod records;
mod shared_links;
mod socket_operations;
mod sockets;
mod verdicts;

/// The licence that the kernel checks: some helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

/// Never reached: the programs do not panic, and the linker removes this.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
