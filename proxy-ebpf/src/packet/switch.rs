//! Takes a flow over from its sockets, at the first bytes of the back end's answer: then the client
//! has said what it has to say for now, and has heard nothing.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use snisplit_common::abi::packet::{Splice, SpliceState, Why};

use crate::cas;
use crate::headers::{ACK, TCP};
use crate::legs::number;
use crate::maps::tell;
use crate::options::Options;
use crate::sockets::{Numbers, numbers};
use crate::work::Work;

/// What a receiver has room for as long as it has not said otherwise.
const FIRST_WINDOW: u32 = 1 << 20;
/// Nanoseconds in a timestamp's tick (`TCP_TS_HZ`, include/net/tcp.h).
const TICK: u64 = 1_000_000;

/// Whether the flow is the kernel's now. The gag is on while this looks: a socket may still receive
/// what was on its way to it, but what it says to that is not heard.
#[inline(never)]
pub(crate) fn switch(ctx: &TcContext, work: &mut Work, splice: *mut Splice) -> bool {
    if !cas::swap(splice, SpliceState::Armed, SpliceState::Switching) {
        return false;
    }
    // SAFETY: the entry lives until this program ends, and whoever finds the flow switching looks only.
    let entry = unsafe { &mut *splice };
    let to = match take_over(ctx, work, entry) {
        Ok(()) => SpliceState::Spliced,
        Err(why) => {
            entry.why = why;
            SpliceState::Fallback
        }
    };
    cas::swap(splice, SpliceState::Switching, to);
    tell(number(splice), to);
    to == SpliceState::Spliced
}

#[inline(always)]
fn take_over(ctx: &TcContext, work: &mut Work, splice: &mut Splice) -> Result<(), Why> {
    let Work { segment, ways, key, .. } = work;
    let client = numbers(ctx, key, segment.family, &splice.client).ok_or(Why::NoSocket)?;
    let backend = numbers(ctx, key, segment.family, &splice.backend).ok_or(Why::NoSocket)?;
    if !(client.is_established && backend.is_established && segment.has(ACK)) {
        return Err(Why::NotEstablished);
    }
    if !(client.is_unmarked && backend.is_unmarked) {
        return Err(Why::Marked);
    }
    let written = backend.write_seq.wrapping_sub(backend.snd_una).wrapping_add(backend.bytes_acked);
    let is_client_quiet = client.copied_seq == client.rcv_nxt && client.is_in_order;
    if !is_client_quiet || written != splice.due || segment.ack() != backend.write_seq {
        return Err(Why::ClientBytes);
    }
    let is_backend_quiet = backend.copied_seq == backend.rcv_nxt && backend.is_in_order;
    let is_first = segment.seq() == backend.rcv_nxt;
    if !is_backend_quiet || !is_first || client.snd_una != client.write_seq {
        return Err(Why::BackendBytes);
    }
    for tuple in [&splice.client, &splice.backend] {
        let out = ways.to(ctx, segment.family, tuple).ok_or(Why::NoRoute)?;
        // What comes back by that way must pass here.
        if out.way_out == 0 {
            return Err(Why::NoRoute);
        }
    }
    let options = Options::read(ctx, segment.at + TCP, segment.options).ok_or(Why::NoSocket)?;
    options.translate(&splice.down).ok_or(Why::NoSocket)?;
    set_numbers(splice, &client, &backend);
    set_stamps(splice, &client, &backend, options.stamp().unwrap_or_default());
    Ok(())
}

#[inline(always)]
fn set_numbers(splice: &mut Splice, client: &Numbers, backend: &Numbers) {
    let Splice { up, down, from_client, from_backend, .. } = splice;
    up.seq = backend.write_seq.wrapping_sub(client.rcv_nxt);
    up.ack = backend.rcv_nxt.wrapping_sub(client.write_seq);
    down.seq = client.write_seq.wrapping_sub(backend.rcv_nxt);
    down.ack = client.rcv_nxt.wrapping_sub(backend.write_seq);
    (from_client.end, from_client.acked) = (client.rcv_nxt, backend.rcv_nxt);
    (from_backend.end, from_backend.acked) = (backend.rcv_nxt, client.rcv_nxt);
    for said in [from_client, from_backend] {
        said.edge = said.acked.wrapping_add(FIRST_WINDOW);
        (said.oldest, said.behind) = (said.end, said.end.wrapping_add(FIRST_WINDOW));
    }
}

/// Each receiver must see timestamps go on where our kernel's were: never back (RFC 7323 §5), and an
/// echo of something that it sent.
#[inline(always)]
fn set_stamps(splice: &mut Splice, client: &Numbers, backend: &Numbers, stamp: u32) {
    // SAFETY: takes nothing and touches nothing.
    let nanoseconds = unsafe { bpf_ktime_get_ns() };
    let now = (nanoseconds / TICK) as u32;
    let Splice { up, down, from_client, from_backend, .. } = splice;
    // Whoever says nothing from now on is silent since now.
    (from_client.last_seen, from_backend.last_seen) = (nanoseconds, nanoseconds);
    up.stamp = now.wrapping_add(backend.ts_offset).wrapping_sub(client.ts_recent);
    down.stamp = now.wrapping_add(client.ts_offset).wrapping_sub(stamp);
    up.echo = down.stamp.wrapping_neg();
    down.echo = up.stamp.wrapping_neg();
    up.echo_floor = backend.ts_recent;
    down.echo_floor = client.ts_recent;
}
