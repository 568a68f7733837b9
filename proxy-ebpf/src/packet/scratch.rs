//! Working memory of a program, which is too large for its stack.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;

use super::headers::Segment;
use super::lookup::TupleCache;
use super::route::RouteCache;
use super::sockets::SockTuple;

/// Working memory of one CPU. One map look-up returns all of it.
#[repr(C)]
pub(super) struct Scratch {
    pub(super) segment: Segment,
    pub(super) tuple_cache: TupleCache,
    pub(super) route_cache: RouteCache,
    pub(super) sock_tuple: SockTuple,
}

/// Largest value of a per-CPU map (`PCPU_MIN_UNIT_SIZE`, mm/percpu.c).
const _: () = assert!(size_of::<Scratch>() <= 32 << 10);

/// Working memory of this CPU. No other program interrupts one of these: softirqs are off while it runs.
#[btf_map(name = "packet_scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

impl Scratch {
    /// Returns the working memory of this CPU, with the values that the previous program left in it.
    #[inline(always)]
    pub(super) fn current_cpu() -> Option<&'static mut Self> {
        // SAFETY: the slot belongs to this CPU and lives as long as the map. One function at a time uses it.
        SCRATCH.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
    }
}
