//! Classification of directions as bulk.

use snisplit_common::abi::sockmap::{
    CLASSIFY_WINDOW_NS, DirectionEntry, DirectionState, MAX_EXCHANGE_BYTES, SockmapEventKind,
};

use super::helpers;
use super::maps::{FLOWS, emit};

/// Asks the agent to take over a bulk direction, which splice(2) carries at a lower cost.
///
/// A direction is bulk if it exceeds its threshold within a window. Request and response is not bulk: the
/// two directions alternate, and each exchange is small.
pub(super) fn detach_if_bulk(cookie: u64, flow: &mut DirectionEntry, new_len: u32) {
    let now = helpers::monotonic_ns();
    if now.wrapping_sub(flow.window_start_ns) > CLASSIFY_WINDOW_NS {
        reset_window(flow, now);
    }
    flow.window_bytes += u64::from(new_len);
    let excess = flow.window_bytes.saturating_sub(flow.bulk_threshold / 2);
    if excess == 0 {
        return;
    }
    // Another CPU writes this cache line, so only large directions read it.
    if let Some(other) = FLOWS.get_ptr(flow.egress_cookie) {
        // SAFETY: the entry lives until this program ends (RCU). The value may be slightly old.
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
