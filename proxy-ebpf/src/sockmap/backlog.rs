//! Backlog of a direction: data that the kernel has redirected and the egress socket has not sent.

use snisplit_common::abi::sockmap::{
    BACKLOG_HARD_LIMIT, BACKLOG_SOFT_LIMIT, DirectionEntry, DirectionState, SKB_LEN_EWMA_WEIGHT,
    SKB_TRUESIZE_OVERHEAD, SockmapCounter, SockmapEventKind,
};

use super::helpers;
use super::maps::emit;

/// Detaches a direction whose receiver is slow. Above the soft limit this asks the agent to take the
/// direction over; above the hard limit the program redirects nothing more.
///
/// # Errors
/// Fails if the egress socket is not in the map of targets.
pub(super) fn detach_if_backlogged(
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
