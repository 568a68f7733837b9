//! The kernel programs of snisplit.
//!
//! `sni_verdict` forwards what one socket of a flow receives to the other one, in the kernel. A byte
//! is redirected once and in order, or left to user space; where neither is certain, the flow is
//! poisoned and user space resets it. It counts why.

#![no_std]
#![no_main]

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SockHash};
use aya_ebpf::macros::{btf_map, stream_verdict};
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::{debug, warn};
use snisplit_common::abi::sockmap::{
    BACKLOG_HARD_LIMIT, BACKLOG_SOFT_LIMIT, CLASSIFY_WINDOW_NS, DirectionEntry, DirectionState,
    MAX_EXCHANGE_BYTES, MAX_SOCKETS, SKB_LEN_EWMA_WEIGHT, SKB_TRUESIZE_OVERHEAD,
    SOCKMAP_COUNTER_COUNT, SockmapCounter, SockmapEvent, SockmapEventKind,
};
use snisplit_common::abi::{EVENT_RING_BYTES, MAX_ROUTES, RouteName};

mod helpers;

/// Entries are allocated when they are needed.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "abi")]
static ABI: Array<u32, 1> = Array::new();

#[btf_map(name = "targets")]
static TARGETS: SockHash<u64, MAX_SOCKETS> = SockHash::new();

#[btf_map(name = "sources")]
static SOURCES: SockHash<u64, MAX_SOCKETS> = SockHash::new();

#[btf_map(name = "flows")]
static FLOWS: HashMap<u64, DirectionEntry, MAX_SOCKETS, NO_PREALLOC> = HashMap::new();

/// For people; the program does not look at it.
#[btf_map(name = "routes")]
static ROUTE_NAMES: HashMap<u32, RouteName, MAX_ROUTES, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "events")]
static EVENTS: RingBuf<SockmapEvent, EVENT_RING_BYTES> = RingBuf::new();

#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<u64, SOCKMAP_COUNTER_COUNT> = PerCpuArray::new();

#[stream_verdict]
fn sni_verdict(ctx: SkBuffContext) -> u32 {
    let len = ctx.len();
    if len == 0 {
        // A FIN on its own, of which TCP has told already. Redirected or passed, it could meet a
        // backlog, whose work takes an empty buffer for EPIPE (sk_psock_backlog, net/core/skmsg.c).
        count(SockmapCounter::NoData);
        debug!(&ctx, "end of stream");
        return SK_DROP;
    }
    let cookie = helpers::socket_cookie(&ctx);
    let Some(flow) = FLOWS.get_ptr_mut(cookie) else {
        count(SockmapCounter::NoEntry);
        return SK_PASS;
    };
    // SAFETY: the entry lives until this program ends (RCU), and what is written here is written by
    // this program only: the socket's lock is held while it runs for this cookie.
    let flow = unsafe { &mut *flow };
    match forward_skb(&ctx, cookie, flow, len) {
        Ok(verdict) => verdict,
        Err(counter) => {
            count(counter);
            if flow.state != DirectionState::Poisoned {
                flow.state = DirectionState::Poisoned;
                warn!(&ctx, "flow {} poisoned: {}", cookie, counter as u32);
                emit(cookie, SockmapEventKind::Poison);
            }
            SK_DROP
        }
    }
}

/// Redirects a buffer, or leaves it to user space. An error is a doubt.
fn forward_skb(
    ctx: &SkBuffContext,
    cookie: u64,
    flow: &mut DirectionEntry,
    len: u32,
) -> Result<u32, SockmapCounter> {
    match flow.state {
        DirectionState::Poisoned => return Err(SockmapCounter::InvalidSequence),
        DirectionState::Pending => init_sequence(cookie, flow, len)?,
        DirectionState::Redirecting | DirectionState::Overflowing | DirectionState::Detaching => {}
    }
    let new_len = trim_overlap(ctx, flow.next_seq, len)?;
    if new_len == 0 {
        // Sent again together with a FIN, which alone was new.
        count(SockmapCounter::NoData);
        return Ok(SK_DROP);
    }
    flow.next_seq = flow.next_seq.wrapping_add(new_len);
    if flow.state != DirectionState::Overflowing {
        detach_if_backlogged(cookie, flow, new_len)?;
    }
    if flow.bulk_threshold != 0 && flow.state == DirectionState::Redirecting {
        detach_if_bulk(cookie, flow, new_len);
    }
    if flow.state == DirectionState::Overflowing {
        count(SockmapCounter::PassedToUser);
        flow.passed_bytes += u64::from(new_len);
        return Ok(SK_PASS);
    }
    if TARGETS.redirect_skb(ctx, flow.egress_cookie, 0) != SK_PASS.into() {
        return Err(SockmapCounter::EgressNotFound);
    }
    flow.redirected_bytes += u64::from(new_len);
    count(if new_len == len { SockmapCounter::Redirected } else { SockmapCounter::Trimmed });
    Ok(SK_PASS)
}

/// Gives the direction to user space if its peer is slow: by asking it to take over, and if it does
/// not in time, by redirecting nothing more.
fn detach_if_backlogged(
    cookie: u64,
    flow: &mut DirectionEntry,
    fresh: u32,
) -> Result<(), SockmapCounter> {
    let write_seq = helpers::write_seq(flow.egress_cookie).ok_or(SockmapCounter::EgressNotFound)?;
    let written = write_seq.wrapping_sub(flow.initial_write_seq);
    let backlog = (flow.redirected_bytes as u32).wrapping_sub(written).wrapping_add(fresh);
    flow.avg_skb_len_x16 =
        flow.avg_skb_len_x16 - flow.avg_skb_len_x16 / SKB_LEN_EWMA_WEIGHT + fresh;
    let skb_count =
        u64::from(backlog) / u64::from(flow.avg_skb_len_x16 / SKB_LEN_EWMA_WEIGHT).max(1);
    let state = match u64::from(backlog) + skb_count * SKB_TRUESIZE_OVERHEAD {
        0..=BACKLOG_SOFT_LIMIT => return Ok(()),
        0..=BACKLOG_HARD_LIMIT => DirectionState::Detaching,
        _ => DirectionState::Overflowing,
    };
    if flow.state != state {
        flow.state = state;
        emit(cookie, SockmapEventKind::Detach);
    }
    Ok(())
}

/// Asks user space to take over a direction that moves much, unless it does so by turns with the other one: user
/// space has the better means for bulk.
fn detach_if_bulk(cookie: u64, flow: &mut DirectionEntry, new_len: u32) {
    let now = helpers::monotonic_ns();
    if now.wrapping_sub(flow.window_start_ns) > CLASSIFY_WINDOW_NS {
        reset_window(flow, now);
    }
    flow.window_bytes += u64::from(new_len);
    let excess = flow.window_bytes.saturating_sub(flow.bulk_threshold / 2);
    if excess == 0 {
        return;
    }
    // Another CPU writes there, so it is not looked at for every flow.
    if let Some(other) = FLOWS.get_ptr(flow.egress_cookie) {
        // SAFETY: the entry lives until this program ends (RCU); the number may be a moment old.
        let redirected = unsafe { (&raw const (*other).redirected_bytes).read_volatile() };
        flow.direction_changes += u32::from(redirected != flow.reverse_redirected);
        flow.reverse_redirected = redirected;
    }
    if flow.window_bytes <= flow.bulk_threshold {
        return;
    }
    if excess <= u64::from(flow.direction_changes) * MAX_EXCHANGE_BYTES {
        reset_window(flow, now);
        return;
    }
    flow.state = DirectionState::Detaching;
    emit(cookie, SockmapEventKind::Detach);
}

fn reset_window(flow: &mut DirectionEntry, now: u64) {
    flow.window_start_ns = now;
    flow.window_bytes = 0;
    flow.direction_changes = 0;
}

/// The first buffer of a direction: from now on its numbers are known.
fn init_sequence(cookie: u64, flow: &mut DirectionEntry, len: u32) -> Result<(), SockmapCounter> {
    flow.avg_skb_len_x16 = len.wrapping_mul(SKB_LEN_EWMA_WEIGHT);
    flow.next_seq = helpers::copied_seq(cookie).ok_or(SockmapCounter::KernelReadFailed)?;
    flow.initial_write_seq =
        helpers::write_seq(flow.egress_cookie).ok_or(SockmapCounter::KernelReadFailed)?;
    flow.state = DirectionState::Redirecting;
    Ok(())
}

/// Cuts off what was forwarded already, and says how many bytes are left.
///
/// `tcp_read_skb` hands over whole buffers whatever their sequence number, and a retransmission may
/// begin before the bytes that are new in it.
fn trim_overlap(ctx: &SkBuffContext, next_seq: u32, len: u32) -> Result<u32, SockmapCounter> {
    let seq = helpers::skb_seq(ctx).ok_or(SockmapCounter::KernelReadFailed)?;
    let overlap_len = next_seq.wrapping_sub(seq);
    if overlap_len == 0 {
        return Ok(len);
    }
    // A gap shows as an overlap of nearly 2^32.
    if overlap_len > len {
        return Err(SockmapCounter::InvalidSequence);
    }
    helpers::trim_head(ctx, overlap_len).ok_or(SockmapCounter::KernelReadFailed)?;
    Ok(len - overlap_len)
}

fn emit(cookie: u64, kind: SockmapEventKind) {
    if EVENTS.output(SockmapEvent { cookie, kind, reserved: 0 }, 0).is_err() {
        count(SockmapCounter::EventLost);
    }
}

fn count(counter: SockmapCounter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's, and never goes. A softirq that runs this for another
        // socket in the middle of it may cost a count, and nothing else.
        unsafe { *slot += 1 };
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}
