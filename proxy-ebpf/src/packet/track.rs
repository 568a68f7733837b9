//! What a flow has come to, from the packets that pass. Only a segment within its window tells
//! anything: a forged one is sent on like any other, and the receivers judge it themselves.

use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{Leg, Splice, SpliceState, Told, Way};

use crate::cas;
use crate::headers::{ACK, FIN, RST, SYN, Segment};
use crate::maps::tell_all;

/// How far back a segment may begin, at least: one that is sent again, or a probe.
const BEHIND: u32 = 1 << 16;

/// Whether `a` comes behind `b`.
#[inline(always)]
const fn is_after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// Whether a number is within `from` and `to`.
#[inline(always)]
pub(crate) const fn is_within(number: u32, from: u32, to: u32) -> bool {
    number.wrapping_sub(from) <= to.wrapping_sub(from)
}

/// Takes note of a segment. Numbers of a direction are written by its own packets only.
#[inline(always)]
pub(crate) fn track(segment: &Segment, leg: &Leg, splice: *mut Splice, now: u64) {
    let (number, direction) = (leg.splice, leg.direction);
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
    if segment.tcp.flags & (SYN | ACK) != ACK || !notes(segment, own, other, now) {
        return;
    }
    let has_ended = |way: &Way| way.has_fin != 0 && !is_after(way.fin, way.acked);
    if has_ended(own) && has_ended(other) {
        end(number, splice, SpliceState::Closed);
    }
}

/// A peer begins a connection from the address of one that runs. The other peer is asked whether it does, as
/// RFC 5961 §4 has the receiver of such a SYN do: its answer makes a peer that knows nothing of the old
/// connection reset it.
#[inline(always)]
pub(crate) fn challenge(segment: &mut Segment, direction: Direction, splice: *mut Splice) {
    // SAFETY: the entry lives until this program ends.
    let entry = unsafe { &mut *splice };
    let (own, other) = match direction {
        Direction::Up => (&mut entry.up, &entry.down),
        Direction::Down => (&mut entry.down, &entry.up),
    };
    own.packets += 1;
    // Out of the window on the near side: acknowledged, and otherwise ignored.
    let tcp = &mut segment.tcp;
    tcp.flags = ACK;
    tcp.seq = own.acked.wrapping_sub(1).to_be();
    tcp.ack = other.acked.wrapping_sub(own.ack).to_be();
}

/// The first number that is not too old: RFC 5961 §5 goes as far back as the window is wide.
#[inline(always)]
fn oldest(way: &Way) -> u32 {
    let window = way.edge.wrapping_sub(way.acked);
    way.acked.wrapping_sub(if window > BEHIND { window } else { BEHIND })
}

/// Whether it was within its window.
#[inline(always)]
fn notes(segment: &Segment, own: &mut Way, other: &mut Way, now: u64) -> bool {
    let ack = segment.ack().wrapping_add(own.ack);
    // The byte behind the edge is a FIN, or a probe of a closed window.
    let (oldest, edge) = (oldest(own), own.edge.wrapping_add(1));
    let is_sane = is_within(segment.seq(), oldest, edge)
        && is_within(segment.end(), oldest, edge)
        && is_within(ack, self::oldest(other), other.end);
    if !is_sane {
        return false;
    }
    own.last_seen = now;
    if is_after(segment.end(), own.end) {
        own.end = segment.end();
    }
    if segment.has(FIN) {
        own.fin = segment.end();
        own.has_fin = 1;
    } else if segment.payload > 0 && is_after(segment.end(), own.fin) {
        // That was not the end.
        own.has_fin = 0;
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
fn end(number: u64, splice: *mut Splice, state: SpliceState) {
    if cas::swap(splice, SpliceState::Spliced, state) {
        // SAFETY: the entry lives until this program ends.
        let Splice { up, down, .. } = unsafe { &*splice };
        tell_all(Told { splice: number, state, up: up.delivered(), down: down.delivered() });
    }
}
