//! What the programs and user space share.

use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use snisplit_common::abi::packet::{
    CUTS_MAX, FATES, Fate, INTERFACES_MAX, Leg, OFFERS_MAX, SPLICES_MAX, Splice, SpliceState,
    TUPLES_MAX, Told, Tuple,
};
use snisplit_common::abi::{EVENTS_BYTES, ROUTES_MAX, Route};

/// Entries are allocated when they are needed.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "packet_abi")]
static PACKET_ABI: Array<u32, 1> = Array::new();

/// Begins with a page, for its entries are to be whole cache lines.
const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

#[btf_map(name = "packet_flows")]
pub(crate) static SPLICES: Array<Splice, SPLICES_MAX, MMAPABLE> = Array::new();

/// Never evicted: what is left without its entry would be answered with a reset.
#[btf_map(name = "packet_tuples")]
pub(crate) static TUPLES: HashMap<Tuple, Leg, TUPLES_MAX, NO_PREALLOC> = HashMap::new();

/// For people; the programs do not look at it.
#[btf_map(name = "packet_routes")]
static ROUTES: HashMap<u32, Route, ROUTES_MAX, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "packet_offers")]
pub(crate) static OFFERS: HashMap<Tuple, u32, OFFERS_MAX, NO_PREALLOC> = HashMap::new();

/// From one process to another; the programs do not look at it.
#[btf_map(name = "packet_cuts")]
static CUTS: HashMap<u64, u32, CUTS_MAX, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "packet_links")]
pub(crate) static LINKS: HashMap<u32, u32, INTERFACES_MAX, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "packet_events")]
static EVENTS: RingBuf<Told, EVENTS_BYTES> = RingBuf::new();

#[btf_map(name = "packet_counters")]
static COUNTERS: PerCpuArray<u64, FATES> = PerCpuArray::new();

/// Tells user space whose a flow is now.
#[inline(always)]
pub(crate) fn tell(splice: u64, state: SpliceState) {
    tell_all(Told { splice, state, up: 0, down: 0 });
}

#[inline(always)]
pub(crate) fn tell_all(told: Told) {
    if EVENTS.output(told, 0).is_err() {
        count(Fate::EventLost);
    }
}

#[inline(always)]
pub(crate) fn count(fate: Fate) {
    if let Some(slot) = COUNTERS.get_ptr_mut(fate as u32) {
        // SAFETY: the slot is this CPU's, and never goes; an interrupt in between may cost a count.
        unsafe { *slot += 1 };
    }
}
