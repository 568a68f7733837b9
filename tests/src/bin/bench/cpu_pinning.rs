//! Cores that client and back end run on.
//!
//! The scheduler places them on one core or on two. On two, a request and its response take several times as long, whatever
//! is between the peers, because an idle core has to wake up.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{CpuSet, sched_setaffinity};

/// Number of cores that client and back end are pinned to.
static CORE_COUNT: AtomicUsize = AtomicUsize::new(UNPINNED);

/// The scheduler chooses.
pub(crate) const UNPINNED: usize = 0;
/// Both on one core.
pub(crate) const SHARED_CORE: usize = 1;
/// One core for each.
pub(crate) const SEPARATE_CORES: usize = 2;

/// Pins the threads of new connections to so many cores, until it is dropped.
pub(crate) struct CpuPinningGuard;

impl CpuPinningGuard {
    pub(crate) fn set(cores: usize) -> Self {
        CORE_COUNT.store(cores, Ordering::Relaxed);
        Self
    }
}

impl Drop for CpuPinningGuard {
    fn drop(&mut self) {
        CORE_COUNT.store(UNPINNED, Ordering::Relaxed);
    }
}

/// Pins this thread to the core of the client, 0, or of the back end, 1.
pub(crate) fn pin_thread(end: usize) {
    let mut cores = CpuSet::new();
    match CORE_COUNT.load(Ordering::Relaxed) {
        UNPINNED => (0..CpuSet::MAX_CPU).for_each(|core| cores.set(core)),
        shared => cores.set(end % shared),
    }
    sched_setaffinity(None, &cores).expect("a core that this process may use");
}
