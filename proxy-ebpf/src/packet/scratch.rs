//! What a program works with, too much for its stack: one look-up of a map for all of it.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;

use super::headers::Segment;
use super::lookup::TupleCache;
use super::route::RouteCache;
use super::sockets::SockTuple;

#[repr(C)]
pub(super) struct Scratch {
    pub(super) segment: Segment,
    pub(super) tuple_cache: TupleCache,
    pub(super) route_cache: RouteCache,
    pub(super) sock_tuple: SockTuple,
}

/// More than this no per-CPU map holds (`PCPU_MIN_UNIT_SIZE`, mm/percpu.c).
const _: () = assert!(size_of::<Scratch>() <= 32 << 10);

/// This CPU's. No program is interrupted by another one: softirqs are off while each of them runs.
#[btf_map(name = "packet_scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

impl Scratch {
    /// This CPU's, with whatever is in it.
    #[inline(always)]
    pub(super) fn current_cpu() -> Option<&'static mut Self> {
        // SAFETY: the slot is this CPU's, never goes, and is used by one function at a time.
        SCRATCH.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
    }
}
