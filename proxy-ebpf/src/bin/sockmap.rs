//! The kernel programs of snisplit.
//!
//! `sni_verdict` forwards what one socket of a flow receives to the other one, in the kernel. A byte
//! is redirected once and in order, or left to user space; where neither is certain, the flow is
//! poisoned and user space resets it. It counts why.

#![no_std]
#![no_main]

use aya_ebpf::macros::stream_verdict;
use aya_ebpf::programs::SkBuffContext;

#[path = "../sockmap/mod.rs"]
mod sockmap;

#[stream_verdict]
fn sni_verdict(ctx: SkBuffContext) -> u32 {
    sockmap::verdict::verdict(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}
