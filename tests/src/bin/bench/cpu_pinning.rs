//! Which core client and back end run on.
//!
//! Where nobody says so the scheduler has them now on one core and now on two, and an exchange takes several
//! times as long on two, whatever is between them: a core that idles has to be woken.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{CpuSet, sched_setaffinity};

/// How many cores they share.
static CORE_COUNT: AtomicUsize = AtomicUsize::new(UNPINNED);

/// The scheduler may do as it likes.
pub(crate) const UNPINNED: usize = 0;
/// They share one.
pub(crate) const SHARED_CORE: usize = 1;
/// A core each.
pub(crate) const SEPARATE_CORES: usize = 2;

/// Has connections that begin from now on keep to so many cores, until it is dropped.
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

/// The place of this thread: of the client, 0, or of the back end, 1.
pub(crate) fn pin_thread(end: usize) {
    let mut cores = CpuSet::new();
    match CORE_COUNT.load(Ordering::Relaxed) {
        UNPINNED => (0..CpuSet::MAX_CPU).for_each(|core| cores.set(core)),
        shared => cores.set(end % shared),
    }
    sched_setaffinity(None, &cores).expect("a core that this process may use");
}
