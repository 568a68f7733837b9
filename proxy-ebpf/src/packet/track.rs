//! What a flow has come to, from the packets that pass. Only a segment within its window tells
//! anything: a forged one is sent on like any other, and the receivers judge it themselves.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{Splice, SpliceState, Way};

use crate::cas;
use crate::headers::{ACK, FIN, RST, SYN, Segment};
use crate::maps::tell;

/// How far behind its sender's front a segment may be: one that is sent again, or a probe.
const BEHIND: u32 = 1 << 26;

/// Whether `a` comes behind `b`.
#[inline(always)]
const fn is_after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// Whether a number is within `from` and `to`.
#[inline(always)]
const fn is_within(number: u32, from: u32, to: u32) -> bool {
    number.wrapping_sub(from) <= to.wrapping_sub(from)
}

/// Takes note of a segment. Numbers of a direction are written by its own packets only.
#[inline(always)]
pub(crate) fn track(segment: &Segment, number: u64, direction: Direction, splice: *mut Splice) {
    // SAFETY: the entry lives until this program ends; a torn account is put right by the next packet.
    let entry = unsafe { &mut *splice };
    let (own, other) = match direction {
        Direction::Up => (&mut entry.up, &mut entry.down),
        Direction::Down => (&mut entry.down, &mut entry.up),
    };
    own.packets += 1;
    if segment.has(RST) {
        // RFC 5961 §3.2: a reset counts at exactly the number that is expected next, so all before it
        // has arrived.
        if segment.seq() == own.end || segment.seq() == own.acked {
            own.bytes += u64::from(segment.seq().wrapping_sub(own.acked));
            own.acked = segment.seq();
            let by = match direction {
                Direction::Up => SpliceState::ClientReset,
                Direction::Down => SpliceState::BackendReset,
            };
            end(number, splice, by);
        }
        return;
    }
    if segment.tcp.flags & (SYN | ACK) != ACK || !notes(segment, own, other) {
        return;
    }
    let has_ended = |way: &Way| way.has_fin != 0 && !is_after(way.fin, way.acked);
    if has_ended(own) && has_ended(other) {
        end(number, splice, SpliceState::Closed);
    }
}

/// Whether it was within its window.
#[inline(always)]
fn notes(segment: &Segment, own: &mut Way, other: &mut Way) -> bool {
    let ack = segment.ack().wrapping_add(own.ack);
    // The byte behind the edge is a FIN, or a probe of a closed window.
    let (oldest, edge) = (own.end.wrapping_sub(BEHIND), own.edge.wrapping_add(1));
    let is_sane = is_within(segment.seq(), oldest, edge)
        && is_within(segment.end(), oldest, edge)
        && is_within(ack, other.acked.wrapping_sub(BEHIND), other.end);
    if !is_sane {
        return false;
    }
    // SAFETY: takes nothing and touches nothing.
    own.last_seen = unsafe { bpf_ktime_get_coarse_ns() };
    if is_after(segment.end(), own.end) {
        own.end = segment.end();
    }
    if segment.has(FIN) {
        own.fin = segment.end();
        own.has_fin = 1;
    }
    if is_after(ack, other.acked) {
        other.bytes += u64::from(ack.wrapping_sub(other.acked));
        other.acked = ack;
    }
    let window = u32::from(u16::from_be(segment.tcp.window)) << (own.scale_in & 0xf);
    let edge = ack.wrapping_add(window);
    if is_after(edge, other.edge) {
        other.edge = edge;
    }
    true
}

#[inline(always)]
fn end(number: u64, splice: *mut Splice, how: SpliceState) {
    if cas::swap(splice, SpliceState::Spliced, how) {
        tell(number, how);
    }
}
