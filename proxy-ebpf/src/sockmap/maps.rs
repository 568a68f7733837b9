//! Maps of the sockmap engine.

use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SockHash};
use aya_ebpf::macros::btf_map;
use snisplit_common::abi::sockmap::{
    DirectionEntry, MAX_SOCKETS, SOCKMAP_COUNTER_COUNT, SockmapCounter, SockmapEvent,
    SockmapEventKind,
};
use snisplit_common::abi::{EVENT_RING_BYTES, MAX_ROUTES, RouteName};

/// Allocates entries when they are inserted.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "abi")]
static ABI: Array<u32, 1> = Array::new();

#[btf_map(name = "targets")]
pub(super) static TARGETS: SockHash<u64, MAX_SOCKETS> = SockHash::new();

#[btf_map(name = "sources")]
static SOURCES: SockHash<u64, MAX_SOCKETS> = SockHash::new();

#[btf_map(name = "flows")]
pub(super) static FLOWS: HashMap<u64, DirectionEntry, MAX_SOCKETS, NO_PREALLOC> = HashMap::new();

/// For `bpftool` and the agent. The program does not read it.
#[btf_map(name = "routes")]
static ROUTE_NAMES: HashMap<u32, RouteName, MAX_ROUTES, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "events")]
static EVENTS: RingBuf<SockmapEvent, EVENT_RING_BYTES> = RingBuf::new();

#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<u64, SOCKMAP_COUNTER_COUNT> = PerCpuArray::new();

/// Sends an event about a receiving socket to the agent.
pub(super) fn emit(cookie: u64, kind: SockmapEventKind) {
    if EVENTS.output(SockmapEvent { cookie, kind, reserved: 0 }, 0).is_err() {
        count(SockmapCounter::EventLost);
    }
}

/// Increments a counter of this CPU.
pub(super) fn count(counter: SockmapCounter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU and lives as long as the map. A softirq that runs this for
        // another socket in between can lose a count, and nothing else.
        unsafe { *slot += 1 };
    }
}
