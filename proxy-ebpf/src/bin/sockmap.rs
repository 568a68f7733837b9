//! BPF program of the sockmap engine.
//!
//! `sni_verdict` redirects the data that one socket of a flow receives to the other socket. It redirects
//! each byte once and in order, or passes it to user space. If it can guarantee neither, it poisons the
//! flow, and the agent resets the flow. Counters show the reasons.

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
    // The verifier rejects a program that can get here.
    loop {}
}
