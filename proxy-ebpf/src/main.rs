//! The kernel programs of snisplit.
//!
//! One so far: a stream verdict that counts what it sees and passes it on. `snisplit doctor` loads
//! and attaches it to prove that compiler, linker, verifier and sockmap work on a host. It never
//! drops: what it cannot account for is still the socket's.

#![no_std]
#![no_main]

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::btf_maps::{PerCpuArray, SockHash};
use aya_ebpf::macros::{btf_map, stream_verdict};
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::debug;
use snisplit_common::abi::{COUNTS, Count, SOURCES_MAX};

/// Sockets that the verdict program watches, by cookie.
#[btf_map(name = "sources")]
static SOURCES: SockHash<u64, SOURCES_MAX> = SockHash::new();

/// One slot for each `Count`.
#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<u64, COUNTS> = PerCpuArray::new();

#[stream_verdict]
fn sni_verdict(ctx: SkBuffContext) -> u32 {
    match ctx.len() {
        // A FIN on its own. Passing it is what tells the reader of the end.
        0 => {
            add(Count::Empty, 1);
            debug!(&ctx, "end of stream");
        }
        len => {
            add(Count::Passed, 1);
            add(Count::PassedBytes, len.into());
        }
    }
    SK_PASS
}

fn add(count: Count, n: u64) {
    if let Some(slot) = COUNTERS.get_ptr_mut(count as u32) {
        // SAFETY: the slot belongs to this CPU, and a verdict program is not preempted by itself
        // there (the sockmap runs it with migration disabled under the socket's lock).
        unsafe { *slot += n };
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}
