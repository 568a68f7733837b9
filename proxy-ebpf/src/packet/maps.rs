//! What the programs and user space share.

use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use snisplit_common::abi::packet::{
    FlowEntry, FlowEvent, FlowState, MAX_INTERFACES, MAX_PACKET_FLOWS, MAX_RESET_REQUESTS,
    MAX_SYN_CLAMPS, MAX_TUPLES, PACKET_COUNTER_COUNT, PacketCounter, Tuple, TupleEntry,
};
use snisplit_common::abi::{EVENT_RING_BYTES, MAX_ROUTES, RouteName};

/// Entries are allocated when they are needed.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "packet_abi")]
static PACKET_ABI: Array<u32, 1> = Array::new();

/// Begins with a page, for its entries are to be whole cache lines.
const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

#[btf_map(name = "packet_flows")]
pub(super) static FLOWS: Array<FlowEntry, MAX_PACKET_FLOWS, MMAPABLE> = Array::new();

/// Never evicted: what is left without its entry would be answered with a reset.
#[btf_map(name = "packet_tuples")]
pub(super) static TUPLES: HashMap<Tuple, TupleEntry, MAX_TUPLES, NO_PREALLOC> = HashMap::new();

/// For people; the programs do not look at it.
#[btf_map(name = "packet_routes")]
static ROUTE_NAMES: HashMap<u32, RouteName, MAX_ROUTES, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "packet_clamps")]
pub(super) static SYN_CLAMPS: HashMap<Tuple, u32, MAX_SYN_CLAMPS, NO_PREALLOC> = HashMap::new();

/// From one process to another; the programs do not look at it.
#[btf_map(name = "packet_resets")]
static RESET_REQUESTS: HashMap<u64, u32, MAX_RESET_REQUESTS, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "packet_ifaces")]
pub(super) static INTERFACES: HashMap<u32, u32, MAX_INTERFACES, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "packet_events")]
static EVENTS: RingBuf<FlowEvent, EVENT_RING_BYTES> = RingBuf::new();

#[btf_map(name = "packet_counters")]
static COUNTERS: PerCpuArray<u64, PACKET_COUNTER_COUNT> = PerCpuArray::new();

/// Tells user space whose a flow is now.
#[inline(always)]
pub(super) fn emit_state(flow_id: u64, state: FlowState) {
    emit(FlowEvent { flow_id, state, bytes_up: 0, bytes_down: 0 });
}

#[inline(always)]
pub(super) fn emit(event: FlowEvent) {
    if EVENTS.output(event, 0).is_err() {
        count(PacketCounter::EventLost);
    }
}

#[inline(always)]
pub(super) fn count(counter: PacketCounter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's, and never goes; an interrupt in between may cost a count.
        unsafe { *slot += 1 };
    }
}
