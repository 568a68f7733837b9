//! What a flow has come to, from the packets that pass. Only a segment within its window tells
//! anything: a forged one is sent on like any other, and the receivers judge it themselves.

use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{Said, Splice, SpliceState, Told, Way};

use crate::cas;
use crate::headers::{ACK, FIN, RST, SYN, Segment};
use crate::legs::number;
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

/// Takes note of a segment. What a peer has said is written by its own packets only, but for a reset, which
/// ends the flow.
#[inline(always)]
pub(crate) fn track(segment: &Segment, direction: Direction, splice: *mut Splice, now: u64) {
    // SAFETY: the entry lives until this program ends; a torn account is put right by the next packet.
    let entry = unsafe { &mut *splice };
    let (way, own, other) = match direction {
        Direction::Up => (&entry.up, &mut entry.from_client, &mut entry.from_backend),
        Direction::Down => (&entry.down, &mut entry.from_backend, &mut entry.from_client),
    };
    own.packets += 1;
    if segment.has(RST) {
        // RFC 5961 §3.2: a reset counts at exactly the number that is expected next, so all before it
        // has arrived.
        if segment.seq() == own.end || segment.seq() == other.acked {
            other.bytes += u64::from(segment.seq().wrapping_sub(other.acked));
            other.acked = segment.seq();
            let by = match direction {
                Direction::Up => SpliceState::ClientReset,
                Direction::Down => SpliceState::BackendReset,
            };
            end(splice, by);
        }
        return;
    }
    if segment.tcp.flags & (SYN | ACK) != ACK || !notes(segment, way, (own, other), now) {
        return;
    }
    let has_ended = |one: &Said, other: &Said| one.has_fin != 0 && !is_after(one.fin, other.acked);
    if has_ended(own, other) && has_ended(other, own) {
        end(splice, SpliceState::Closed);
    }
}

/// A peer begins a connection from the address of one that runs. The other peer is asked whether it does, as
/// RFC 5961 §4 has the receiver of such a SYN do: its answer makes a peer that knows nothing of the old
/// connection reset it.
#[inline(always)]
pub(crate) fn challenge(segment: &mut Segment, direction: Direction, splice: *mut Splice) {
    // SAFETY: the entry lives until this program ends.
    let entry = unsafe { &mut *splice };
    let (way, own, other) = match direction {
        Direction::Up => (&entry.up, &mut entry.from_client, &entry.from_backend),
        Direction::Down => (&entry.down, &mut entry.from_backend, &entry.from_client),
    };
    own.packets += 1;
    // Out of the window on the near side: acknowledged, and otherwise ignored.
    let tcp = &mut segment.tcp;
    tcp.flags = ACK;
    tcp.seq = other.acked.wrapping_sub(1).to_be();
    tcp.ack = own.acked.wrapping_sub(way.ack).to_be();
}

/// The first number that its receiver does not find too old: RFC 5961 §5 goes as far back as the window is
/// wide.
#[inline(always)]
fn oldest(receiver: &Said) -> u32 {
    let window = receiver.edge.wrapping_sub(receiver.acked);
    receiver.acked.wrapping_sub(if window > BEHIND { window } else { BEHIND })
}

/// Behind the last number that its receiver has room for: the byte there is a FIN, or a probe of a closed
/// window.
#[inline(always)]
fn behind(receiver: &Said) -> u32 {
    receiver.edge.wrapping_add(1)
}

/// What a peer may say, as far as it shows without a look at what the other one has said: that is in a cache
/// line of another CPU's, as a rule. Nobody acknowledges what he has no room for, so `ack` needs none.
#[inline(always)]
fn is_expected(segment: &Segment, ack: u32, own: &Said) -> bool {
    is_within(segment.seq(), own.oldest, own.behind)
        && is_within(segment.end(), own.oldest, own.behind)
        && is_within(ack, oldest(own), behind(own))
}

/// The same, with a look.
#[inline(always)]
fn is_expected_now(segment: &Segment, ack: u32, own: &mut Said, other: &Said) -> bool {
    if own.oldest == own.behind {
        // `Said::unfollowed`.
        own.bytes += u64::from(ack.wrapping_sub(own.acked));
        (own.end, own.acked, own.edge) = (segment.end(), ack, ack);
        (own.oldest, own.behind) = (segment.seq(), segment.end().wrapping_add(1));
        return true;
    }
    (own.oldest, own.behind) = (oldest(other), behind(other));
    is_expected(segment, ack, own)
}

/// Whether it was within its window.
#[inline(always)]
fn notes(segment: &Segment, way: &Way, (own, other): (&mut Said, &Said), now: u64) -> bool {
    let ack = segment.ack().wrapping_add(way.ack);
    if !is_expected(segment, ack, own) && !is_expected_now(segment, ack, own, other) {
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
    if is_after(ack, own.acked) {
        own.bytes += u64::from(ack.wrapping_sub(own.acked));
        own.acked = ack;
    }
    let window = u32::from(u16::from_be(segment.tcp.window)) << (way.scale_in & 0xf);
    let edge = ack.wrapping_add(window);
    if is_after(edge, own.edge) {
        own.edge = edge;
    }
    true
}

#[inline(always)]
fn end(splice: *mut Splice, state: SpliceState) {
    if cas::swap(splice, SpliceState::Spliced, state) {
        // SAFETY: the entry lives until this program ends.
        let (up, down) = unsafe { &*splice }.delivered();
        tell_all(Told { splice: number(splice), state, up, down });
    }
}
