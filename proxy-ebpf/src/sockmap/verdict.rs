//! Verdict on each received buffer.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::{debug, warn};
use snisplit_common::abi::sockmap::{
    DirectionEntry, DirectionState, SKB_LEN_EWMA_WEIGHT, SockmapCounter, SockmapEventKind,
};

use super::backlog::detach_if_backlogged;
use super::classify::detach_if_bulk;
use super::helpers;
use super::maps::{FLOWS, TARGETS, count, emit};

/// Entry point of `sni_verdict`.
#[inline(always)]
pub(crate) fn verdict(ctx: &SkBuffContext) -> u32 {
    let len = ctx.len();
    if len == 0 {
        // A FIN without data, which TCP has reported to the socket already. If it joined a backlog,
        // `sk_psock_backlog` (net/core/skmsg.c) would take the empty buffer for EPIPE.
        count(SockmapCounter::NoData);
        debug!(ctx, "end of stream");
        return SK_DROP;
    }
    let cookie = helpers::socket_cookie(ctx);
    let Some(flow) = FLOWS.get_ptr_mut(cookie) else {
        count(SockmapCounter::NoEntry);
        return SK_PASS;
    };
    // SAFETY: the entry lives until this program ends (RCU). Only this program writes these fields, and
    // the kernel holds the socket's lock while it runs for this cookie.
    let flow = unsafe { &mut *flow };
    match forward_skb(ctx, cookie, flow, len) {
        Ok(verdict) => verdict,
        Err(counter) => {
            count(counter);
            if flow.state != DirectionState::Poisoned {
                flow.state = DirectionState::Poisoned;
                warn!(ctx, "flow {} poisoned: {}", cookie, counter as u32);
                emit(cookie, SockmapEventKind::Poison);
            }
            SK_DROP
        }
    }
}

/// Redirects a buffer, or passes it to user space.
///
/// # Errors
/// Fails if it cannot guarantee that each byte arrives once and in order.
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
        // A repetition together with a FIN, which alone was new.
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

/// Reads the sequence numbers of a direction at its first buffer, and starts to redirect.
fn init_sequence(cookie: u64, flow: &mut DirectionEntry, len: u32) -> Result<(), SockmapCounter> {
    flow.avg_skb_len_x16 = len.wrapping_mul(SKB_LEN_EWMA_WEIGHT);
    flow.next_seq = helpers::copied_seq(cookie).ok_or(SockmapCounter::KernelReadFailed)?;
    flow.initial_write_seq =
        helpers::write_seq(flow.egress_cookie).ok_or(SockmapCounter::KernelReadFailed)?;
    flow.state = DirectionState::Redirecting;
    Ok(())
}

/// Removes bytes that the program has forwarded already, and returns the number of new bytes.
///
/// `tcp_read_skb` passes whole buffers, whatever their sequence number. A retransmission may start before
/// its new bytes.
fn trim_overlap(ctx: &SkBuffContext, next_seq: u32, len: u32) -> Result<u32, SockmapCounter> {
    let seq = helpers::skb_seq(ctx).ok_or(SockmapCounter::KernelReadFailed)?;
    let overlap_len = next_seq.wrapping_sub(seq);
    if overlap_len == 0 {
        return Ok(len);
    }
    // A gap appears as an overlap of nearly 2^32.
    if overlap_len > len {
        return Err(SockmapCounter::InvalidSequence);
    }
    helpers::trim_head(ctx, overlap_len).ok_or(SockmapCounter::KernelReadFailed)?;
    Ok(len - overlap_len)
}
