//! Maps of the packet engine.

use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use snisplit_common::abi::packet::{
    FlowEntry, FlowEvent, FlowState, MAX_INTERFACES, MAX_PACKET_FLOWS, MAX_RESET_REQUESTS,
    MAX_SYN_CLAMPS, MAX_TUPLES, PACKET_COUNTER_COUNT, PacketCounter, Tuple, TupleEntry,
};
use snisplit_common::abi::{EVENT_RING_BYTES, MAX_ROUTES, RouteName};

/// Allocates entries when they are inserted.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "packet_abi")]
static PACKET_ABI: Array<u32, 1> = Array::new();

/// Starts the array at a page, so that its entries are aligned to cache lines.
const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

#[btf_map(name = "packet_flows")]
pub(super) static FLOWS: Array<FlowEntry, MAX_PACKET_FLOWS, MMAPABLE> = Array::new();

/// Tuples of flows. The map evicts nothing: the kernel would reset a flow whose tuple is missing.
#[btf_map(name = "packet_tuples")]
pub(super) static TUPLES: HashMap<Tuple, TupleEntry, MAX_TUPLES, NO_PREALLOC> = HashMap::new();

/// For `bpftool` and the agent. The programs do not read it.
#[btf_map(name = "packet_routes")]
static ROUTE_NAMES: HashMap<u32, RouteName, MAX_ROUTES, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "packet_clamps")]
pub(super) static SYN_CLAMPS: HashMap<Tuple, u32, MAX_SYN_CLAMPS, NO_PREALLOC> = HashMap::new();

/// From `snisplit flows reset` to the agent. The programs do not read it.
#[btf_map(name = "packet_resets")]
static RESET_REQUESTS: HashMap<u64, u32, MAX_RESET_REQUESTS, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "packet_ifaces")]
pub(super) static INTERFACES: HashMap<u32, u32, MAX_INTERFACES, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "packet_events")]
static EVENTS: RingBuf<FlowEvent, EVENT_RING_BYTES> = RingBuf::new();

#[btf_map(name = "packet_counters")]
static COUNTERS: PerCpuArray<u64, PACKET_COUNTER_COUNT> = PerCpuArray::new();

/// Sends an event with the new state of a flow to the agent.
#[inline(always)]
pub(super) fn emit_state(flow_id: u64, state: FlowState) {
    emit(FlowEvent { flow_id, state, bytes_up: 0, bytes_down: 0 });
}

/// Sends an event to the agent.
#[inline(always)]
pub(super) fn emit(event: FlowEvent) {
    if EVENTS.output(event, 0).is_err() {
        count(PacketCounter::EventLost);
    }
}

/// Increments a counter of this CPU.
#[inline(always)]
pub(super) fn count(counter: PacketCounter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU and lives as long as the map. An interrupt in between can
        // lose a count.
        unsafe { *slot += 1 };
    }
}
