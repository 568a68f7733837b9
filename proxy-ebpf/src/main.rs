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
use snisplit_common::abi::{
    BACKLOG_HARD, BACKLOG_SOFT, BUFFER_OVERHEAD, COUNTS, Count, EVENTS_BYTES, Event, EventKind,
    Flow, MEAN_OF, PACE_NS, ROUTES_MAX, Route, SOCKETS_MAX, State, TURN,
};

mod helpers;

/// Entries are allocated when they are needed.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "abi")]
static ABI: Array<u32, 1> = Array::new();

#[btf_map(name = "targets")]
static TARGETS: SockHash<u64, SOCKETS_MAX> = SockHash::new();

#[btf_map(name = "sources")]
static SOURCES: SockHash<u64, SOCKETS_MAX> = SockHash::new();

#[btf_map(name = "flows")]
static FLOWS: HashMap<u64, Flow, SOCKETS_MAX, NO_PREALLOC> = HashMap::new();

/// For people; the program does not look at it.
#[btf_map(name = "routes")]
static ROUTES: HashMap<u32, Route, ROUTES_MAX, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "events")]
static EVENTS: RingBuf<Event, EVENTS_BYTES> = RingBuf::new();

#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<u64, COUNTS> = PerCpuArray::new();

#[stream_verdict]
fn sni_verdict(ctx: SkBuffContext) -> u32 {
    let len = ctx.len();
    if len == 0 {
        // A FIN on its own, of which TCP has told already. Redirected or passed, it could meet a
        // backlog, whose work takes an empty buffer for EPIPE (sk_psock_backlog, net/core/skmsg.c).
        count(Count::Empty);
        debug!(&ctx, "end of stream");
        return SK_DROP;
    }
    let cookie = helpers::cookie(&ctx);
    let Some(flow) = FLOWS.get_ptr_mut(cookie) else {
        count(Count::NoFlow);
        return SK_PASS;
    };
    // SAFETY: the entry lives until this program ends (RCU), and what is written here is written by
    // this program only: the socket's lock is held while it runs for this cookie.
    let flow = unsafe { &mut *flow };
    match forward(&ctx, cookie, flow, len) {
        Ok(verdict) => verdict,
        Err(why) => {
            count(why);
            if flow.state != State::Poisoned {
                flow.state = State::Poisoned;
                warn!(&ctx, "flow {} poisoned: {}", cookie, why as u32);
                tell(cookie, EventKind::Poison);
            }
            SK_DROP
        }
    }
}

/// Redirects a buffer, or leaves it to user space. An error is a doubt.
fn forward(ctx: &SkBuffContext, cookie: u64, flow: &mut Flow, len: u32) -> Result<u32, Count> {
    match flow.state {
        State::Poisoned => return Err(Count::BadSequence),
        State::Armed => begin(cookie, flow, len)?,
        State::Spliced | State::Spilling | State::Leaving => {}
    }
    let fresh = trim(ctx, flow.next_seq, len)?;
    if fresh == 0 {
        // Sent again together with a FIN, which alone was new.
        count(Count::Empty);
        return Ok(SK_DROP);
    }
    flow.next_seq = flow.next_seq.wrapping_add(fresh);
    if flow.state != State::Spilling {
        give_up_if_slow(cookie, flow, fresh)?;
    }
    if flow.bulk != 0 && flow.state == State::Spliced {
        give_up_if_bulk(cookie, flow, fresh);
    }
    if flow.state == State::Spilling {
        count(Count::Passed);
        flow.passed += u64::from(fresh);
        return Ok(SK_PASS);
    }
    if TARGETS.redirect_skb(ctx, flow.peer, 0) != SK_PASS.into() {
        return Err(Count::NoTarget);
    }
    flow.redirected += u64::from(fresh);
    count(if fresh == len { Count::Redirected } else { Count::Trimmed });
    Ok(SK_PASS)
}

/// Gives the direction to user space if its peer is slow: by asking it to take over, and if it does
/// not in time, by redirecting nothing more.
fn give_up_if_slow(cookie: u64, flow: &mut Flow, fresh: u32) -> Result<(), Count> {
    let write_seq = helpers::write_seq(flow.peer).ok_or(Count::NoTarget)?;
    let handed = write_seq.wrapping_sub(flow.base);
    let backlog = (flow.redirected as u32).wrapping_sub(handed).wrapping_add(fresh);
    flow.mean_len = flow.mean_len - flow.mean_len / MEAN_OF + fresh;
    let buffers = u64::from(backlog) / u64::from(flow.mean_len / MEAN_OF).max(1);
    let state = match u64::from(backlog) + buffers * BUFFER_OVERHEAD {
        0..=BACKLOG_SOFT => return Ok(()),
        0..=BACKLOG_HARD => State::Leaving,
        _ => State::Spilling,
    };
    if flow.state != state {
        flow.state = state;
        tell(cookie, EventKind::Leave);
    }
    Ok(())
}

/// Asks user space to take over a direction that moves much, unless it does so by turns with the other one: user
/// space has the better means for bulk.
fn give_up_if_bulk(cookie: u64, flow: &mut Flow, fresh: u32) {
    let now = helpers::monotonic_ns();
    if now.wrapping_sub(flow.paced_from) > PACE_NS {
        pace_anew(flow, now);
    }
    flow.paced += u64::from(fresh);
    let second_half = flow.paced.saturating_sub(flow.bulk / 2);
    if second_half == 0 {
        return;
    }
    // Another CPU writes there, so it is not looked at for every flow.
    if let Some(other) = FLOWS.get_ptr(flow.peer) {
        // SAFETY: the entry lives until this program ends (RCU); the number may be a moment old.
        let redirected = unsafe { (&raw const (*other).redirected).read_volatile() };
        flow.turns += u32::from(redirected != flow.heard);
        flow.heard = redirected;
    }
    if flow.paced <= flow.bulk {
        return;
    }
    if second_half <= u64::from(flow.turns) * TURN {
        pace_anew(flow, now);
        return;
    }
    flow.state = State::Leaving;
    tell(cookie, EventKind::Leave);
}

fn pace_anew(flow: &mut Flow, now: u64) {
    flow.paced_from = now;
    flow.paced = 0;
    flow.turns = 0;
}

/// The first buffer of a direction: from now on its numbers are known.
fn begin(cookie: u64, flow: &mut Flow, len: u32) -> Result<(), Count> {
    flow.mean_len = len.wrapping_mul(MEAN_OF);
    flow.next_seq = helpers::copied_seq(cookie).ok_or(Count::Unreadable)?;
    flow.base = helpers::write_seq(flow.peer).ok_or(Count::Unreadable)?;
    flow.state = State::Spliced;
    Ok(())
}

/// Cuts off what was forwarded already, and says how many bytes are left.
///
/// `tcp_read_skb` hands over whole buffers whatever their sequence number, and a retransmission may
/// begin before the bytes that are new in it.
fn trim(ctx: &SkBuffContext, next_seq: u32, len: u32) -> Result<u32, Count> {
    let seq = helpers::sequence(ctx).ok_or(Count::Unreadable)?;
    let overlap = next_seq.wrapping_sub(seq);
    if overlap == 0 {
        return Ok(len);
    }
    // A gap shows as an overlap of nearly 2^32.
    if overlap > len {
        return Err(Count::BadSequence);
    }
    helpers::cut_front(ctx, overlap).ok_or(Count::Unreadable)?;
    Ok(len - overlap)
}

fn tell(cookie: u64, kind: EventKind) {
    if EVENTS.output(Event { cookie, kind, reserved: 0 }, 0).is_err() {
        count(Count::EventLost);
    }
}

fn count(count: Count) {
    if let Some(slot) = COUNTERS.get_ptr_mut(count as u32) {
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
