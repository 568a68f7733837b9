//! Pins of a version before this one's are made this one's. Flows do not notice: the programs that carry them
//! keep their maps until the next agent brings its own.

use std::fs;
use std::mem::offset_of;
use std::path::Path;

use aya::EbpfLoader;
use aya::maps::{Array, HashMap, Map, MapData, MapType};
use snisplit_common::abi::packet::{
    FallbackReason, FlowEntry, FlowState, PACKET_ABI_MAP, PACKET_ABI_VERSION, PACKET_COUNTERS_MAP,
    PACKET_FLOWS_MAP, PACKET_TUPLES_MAP, PeerState, Translation, Tuple,
};

use super::super::KernelError;
use super::super::layout::{LegBytes, Plain, SpliceBytes, TupleBytes, encode, fields};
use super::super::pinned::{pin, version};
use super::OBJECT;
use super::records::legs;

/// Counts one thing less than the next.
const WITHOUT_EARLY: u32 = 2;
/// Has its flows in a hash map, and another record of each.
const HASHED: u32 = 3;
/// The table of this version, until all flows are in it.
const NEXT: &str = "packet_flows_next";

/// Makes what is pinned there this version's; which it was.
pub(crate) fn migrate(folder: &Path) -> Result<u32, KernelError> {
    let was = version(folder, PACKET_ABI_MAP)?;
    match was {
        PACKET_ABI_VERSION => return Ok(was),
        // The next agent begins to count anew; it is gone already if we were killed here before.
        WITHOUT_EARLY => _ = fs::remove_file(folder.join(PACKET_COUNTERS_MAP)),
        HASHED => {}
        _ => return Err(KernelError::PacketAbi(was, folder.display().to_string())),
    }
    move_flows(folder)?;
    let mut abi: Array<MapData, u32> = Map::Array(pin(folder, PACKET_ABI_MAP)?).try_into()?;
    abi.set(0, PACKET_ABI_VERSION, 0)?;
    Ok(was)
}

/// From the hash map to a table, which then takes its place.
fn move_flows(folder: &Path) -> Result<(), KernelError> {
    let old = pin(folder, PACKET_FLOWS_MAP)?;
    if old.info()?.map_type()? != MapType::Hash {
        // Killed after it had taken its place.
        return Ok(());
    }
    let old: HashMap<MapData, u64, HashedBytes> = Map::HashMap(old).try_into()?;
    let next = folder.join(NEXT);
    let _there_was_none = fs::remove_file(&next);
    let mut ebpf = EbpfLoader::new().map_pin_path(PACKET_FLOWS_MAP, &next).load(OBJECT)?;
    let table = ebpf.take_map(PACKET_FLOWS_MAP).ok_or(KernelError::Missing(PACKET_FLOWS_MAP))?;
    let mut table: Array<MapData, SpliceBytes> = table.try_into()?;
    let mut tuples: HashMap<MapData, TupleBytes, LegBytes> =
        Map::HashMap(pin(folder, PACKET_TUPLES_MAP)?).try_into()?;
    for (slot, (number, bytes)) in (0..).zip(old.iter().flatten()) {
        let splice = Hashed::get(&bytes).tabled(number);
        table.set(slot, encode::<{ size_of::<FlowEntry>() }>(&splice), 0)?;
        for (tuple, leg) in legs((number, slot), &splice) {
            // The programs of that version do not look at what is new in it.
            if tuples.get(&tuple, 0).is_ok_and(|found| found[..12] == leg[..12]) {
                tuples.insert(tuple, leg, 0)?;
            }
        }
    }
    Ok(fs::rename(next, folder.join(PACKET_FLOWS_MAP))?)
}

type HashedBytes = [u8; size_of::<Hashed>()];

/// A flow as it was up to version 3.
#[derive(Clone, Copy)]
#[repr(C)]
struct Hashed {
    state: FlowState,
    opened: u64,
    client: Tuple,
    backend: Tuple,
    up: Course,
    down: Course,
    due: u32,
    route: u32,
    why: FallbackReason,
    reserved: u32,
}

/// A direction of it: what has been said of its bytes, in its sender's numbers.
#[derive(Clone, Copy)]
#[repr(C)]
struct Course {
    packets: u64,
    bytes: u64,
    last_seen: u64,
    seq: u32,
    ack: u32,
    stamp: u32,
    echo: u32,
    echo_floor: u32,
    scale_in: u32,
    scale_out: u32,
    start: u32,
    end: u32,
    acked: u32,
    edge: u32,
    fin: u32,
    has_fin: u32,
    ends_ecn: u32,
}

fields! {
    Hashed { state opened client backend up down due route why reserved }
    Course {
        packets bytes last_seen seq ack stamp echo echo_floor scale_in scale_out start end acked edge fin
        has_fin ends_ecn
    }
}

const _: () = assert!(size_of::<Hashed>() == 264);

impl Hashed {
    /// As it is now. Nobody follows it until the next agent's programs do.
    fn tabled(&self, number: u64) -> FlowEntry {
        let Self { state, opened, client, backend, up, down, due, route, why, .. } = self;
        FlowEntry {
            state: *state,
            client_tuple: *client,
            to_backend: up.way(),
            backend_tuple: *backend,
            to_client: down.way(),
            id: number,
            started_at: *opened,
            expected_acked: *due,
            route_id: *route,
            fallback_reason: *why,
            client_state: up.said(down).untracked(),
            backend_state: down.said(up).untracked(),
            ..FlowEntry::default()
        }
    }
}

impl Course {
    const fn way(&self) -> Translation {
        let Self { seq, ack, stamp, echo, echo_floor, scale_in, scale_out, ends_ecn, .. } = *self;
        let [scale_in, scale_out, ends_ecn] = [scale_in as u8, scale_out as u8, ends_ecn as u8];
        Translation {
            seq_delta: seq,
            ack_delta: ack,
            tsval_delta: stamp,
            tsecr_delta: echo,
            min_tsecr: echo_floor,
            wscale_from: scale_in,
            wscale_to: scale_out,
            strip_ecn: ends_ecn,
            reserved: 0,
        }
    }

    /// What its sender has said; `other` is the other direction.
    const fn said(&self, other: &Self) -> PeerState {
        PeerState {
            packets: self.packets,
            last_seen_ns: self.last_seen,
            acked_bytes: other.bytes,
            snd_nxt: self.end,
            fin_seq: self.fin,
            has_fin: self.has_fin,
            acked_seq: other.acked,
            rcv_wnd_end: other.edge,
            valid_from: 0,
            valid_to: 0,
        }
    }
}
