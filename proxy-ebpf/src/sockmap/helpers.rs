//! Safe wrappers of BPF helpers.

use core::ptr;

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_map_lookup_elem, bpf_probe_read_kernel,
    bpf_sk_release, bpf_skc_to_tcp_sock,
};
use aya_ebpf::programs::SkBuffContext;
use aya_ebpf::{EbpfContext as _, Global};

use super::maps::TARGETS;

/// Offset of the sequence number in an `sk_buff` that TCP owns (`TCP_SKB_CB`, include/net/tcp.h).
#[unsafe(no_mangle)]
static SKB_SEQ_OFFSET: Global<u32> = Global::new(0);
/// Offset of `write_seq` in a `tcp_sock`: the sequence number after the last byte written to it.
#[unsafe(no_mangle)]
static WRITE_SEQ_OFFSET: Global<u32> = Global::new(0);
/// Offset of `copied_seq` in a `tcp_sock`: the sequence number of the first unread byte.
#[unsafe(no_mangle)]
static COPIED_SEQ_OFFSET: Global<u32> = Global::new(0);

/// Largest number of bytes that one call of `bpf_skb_adjust_room` removes (`sk_skb_adjust_room`,
/// net/core/filter.c).
const MAX_ADJUST_LEN: u32 = 0xfff;
/// Number of calls that remove as many bytes as the largest GRO packet has (64 KiB).
const MAX_ADJUST_CALLS: u32 = 17;

/// Returns the cookie of the receiving socket.
pub(super) fn socket_cookie(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the helper reads the socket of a valid context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Returns the time of the last tick in nanoseconds since boot (`CLOCK_MONOTONIC_COARSE`).
pub(super) fn monotonic_ns() -> u64 {
    // SAFETY: the helper has no arguments and no side effects.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Returns the sequence number of the first byte in the buffer.
pub(super) fn skb_seq(ctx: &SkBuffContext) -> Option<u32> {
    let offset = SKB_SEQ_OFFSET.load() as usize;
    // SAFETY: the context of this program type is the `sk_buff` itself. A helper reads the address; this
    // code does not dereference it.
    read_kernel_u32(unsafe { ctx.as_ptr().byte_add(offset) })
}

/// Returns the sequence number after the last byte written to a target's TCP.
pub(super) fn write_seq(target: u64) -> Option<u32> {
    read_tcp_sock_u32(target, WRITE_SEQ_OFFSET.load())
}

/// Returns the sequence number of the first unread byte of a target.
pub(super) fn copied_seq(target: u64) -> Option<u32> {
    read_tcp_sock_u32(target, COPIED_SEQ_OFFSET.load())
}

fn read_tcp_sock_u32(cookie: u64, offset: u32) -> Option<u32> {
    // SAFETY: the address of its static identifies a map, and the key is on the stack.
    let socket = unsafe {
        bpf_map_lookup_elem(ptr::from_ref(&TARGETS).cast_mut().cast(), (&raw const cookie).cast())
    };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the look-up has returned a referenced socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket) };
    let number = match tcp.is_null() {
        true => None,
        // SAFETY: a helper reads the address; this code does not dereference it.
        false => read_kernel_u32(unsafe { tcp.cast::<c_void>().byte_add(offset as usize) }),
    };
    // SAFETY: this releases the reference of the look-up, once.
    unsafe { bpf_sk_release(socket) };
    number
}

fn read_kernel_u32(from: *mut c_void) -> Option<u32> {
    let mut number = 0_u32;
    // SAFETY: the helper writes four bytes to `number`, and checks the address that it reads.
    match unsafe { bpf_probe_read_kernel((&raw mut number).cast(), 4, from) } {
        0 => Some(number),
        _ => None,
    }
}

/// Removes bytes from the start of the buffer.
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
