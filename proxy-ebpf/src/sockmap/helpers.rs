//! The kernel's helpers, each behind a function that cannot be called wrongly.

use core::ptr;

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_map_lookup_elem, bpf_probe_read_kernel,
    bpf_sk_release, bpf_skc_to_tcp_sock,
};
use aya_ebpf::programs::SkBuffContext;
use aya_ebpf::{EbpfContext as _, Global};

use super::maps::TARGETS;

/// Of the sequence number in an `sk_buff` that TCP owns (`TCP_SKB_CB`, include/net/tcp.h).
#[unsafe(no_mangle)]
static SKB_SEQ_OFFSET: Global<u32> = Global::new(0);
/// Of `write_seq` in a `tcp_sock`: the end of what was handed to it.
#[unsafe(no_mangle)]
static WRITE_SEQ_OFFSET: Global<u32> = Global::new(0);
/// Of `copied_seq` in a `tcp_sock`: the beginning of what was not read.
#[unsafe(no_mangle)]
static COPIED_SEQ_OFFSET: Global<u32> = Global::new(0);

/// Most bytes that one call of `bpf_skb_adjust_room` takes away (sk_skb_adjust_room, net/core/filter.c).
const MAX_ADJUST_LEN: u32 = 0xfff;
/// Calls that take away as much as a GRO super-packet holds.
const MAX_ADJUST_CALLS: u32 = 17;

/// The cookie of the socket that received.
pub(super) fn socket_cookie(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the helper reads the socket of the context that the kernel gave us.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Nanoseconds since boot, as of the last tick.
pub(super) fn monotonic_ns() -> u64 {
    // SAFETY: takes nothing and touches nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The sequence number of the first byte in the buffer.
pub(super) fn skb_seq(ctx: &SkBuffContext) -> Option<u32> {
    let offset = SKB_SEQ_OFFSET.load() as usize;
    // SAFETY: the context of this program type is the `sk_buff` itself; the address is read as
    // kernel memory and never dereferenced here.
    read_kernel_u32(unsafe { ctx.as_ptr().byte_add(offset) })
}

/// The end of what was handed to a target's TCP.
pub(super) fn write_seq(target: u64) -> Option<u32> {
    read_tcp_sock_u32(target, WRITE_SEQ_OFFSET.load())
}

/// The beginning of what was not taken from a target.
pub(super) fn copied_seq(target: u64) -> Option<u32> {
    read_tcp_sock_u32(target, COPIED_SEQ_OFFSET.load())
}

fn read_tcp_sock_u32(cookie: u64, offset: u32) -> Option<u32> {
    // SAFETY: a map is known by the address of its static, and the key is on our stack.
    let socket = unsafe {
        bpf_map_lookup_elem(ptr::from_ref(&TARGETS).cast_mut().cast(), (&raw const cookie).cast())
    };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the look-up gave a referenced socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket) };
    let number = match tcp.is_null() {
        true => None,
        // SAFETY: read as kernel memory, never dereferenced here.
        false => read_kernel_u32(unsafe { tcp.cast::<c_void>().byte_add(offset as usize) }),
    };
    // SAFETY: the reference that the look-up took, given back once.
    unsafe { bpf_sk_release(socket) };
    number
}

fn read_kernel_u32(from: *mut c_void) -> Option<u32> {
    let mut number = 0_u32;
    // SAFETY: the helper writes four bytes to `number`, and checks the address it reads.
    match unsafe { bpf_probe_read_kernel((&raw mut number).cast(), 4, from) } {
        0 => Some(number),
        _ => None,
    }
}

/// Takes bytes away in front.
pub(super) fn trim_head(ctx: &SkBuffContext, bytes: u32) -> Option<()> {
    let mut remaining = bytes;
    for _ in 0..MAX_ADJUST_CALLS {
        if remaining == 0 {
            break;
        }
        let chunk = if remaining > MAX_ADJUST_LEN { MAX_ADJUST_LEN } else { remaining };
        ctx.skb.adjust_room(-(chunk as i32), 0, 0).ok()?;
        remaining -= chunk;
    }
    (remaining == 0).then_some(())
}
