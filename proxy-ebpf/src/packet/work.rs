//! What a program works with, too much for its stack: one look-up of a map for all of it.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;

use crate::forward::Ways;
use crate::headers::Segment;
use crate::legs::Legs;
use crate::sockets::Key;

#[repr(C)]
pub(crate) struct Work {
    pub(crate) segment: Segment,
    pub(crate) legs: Legs,
    pub(crate) ways: Ways,
    pub(crate) key: Key,
}

/// More than this no per-CPU map holds (`PCPU_MIN_UNIT_SIZE`, mm/percpu.c).
const _: () = assert!(size_of::<Work>() <= 32 << 10);

/// This CPU's. No program is interrupted by another one: softirqs are off while each of them runs.
#[btf_map(name = "packet_work")]
static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

impl Work {
    /// This CPU's, with whatever is in it.
    #[inline(always)]
    pub(crate) fn get() -> Option<&'static mut Self> {
        // SAFETY: the slot is this CPU's, never goes, and is used by one function at a time.
        WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
    }
}
