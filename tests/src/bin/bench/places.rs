//! Which core client and back end run on.
//!
//! Where nobody says so the scheduler has them now on one core and now on two, and an exchange takes several
//! times as long on two, whatever is between them: a core that idles has to be woken.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{CpuSet, sched_setaffinity};

/// How many cores they share.
static CORES: AtomicUsize = AtomicUsize::new(ANY);

/// The scheduler may do as it likes.
pub(crate) const ANY: usize = 0;
/// They share one.
pub(crate) const ONE: usize = 1;
/// A core each.
pub(crate) const EACH: usize = 2;

/// Has connections that begin from now on keep to so many cores, until it is dropped.
pub(crate) struct Kept;

impl Kept {
    pub(crate) fn to(cores: usize) -> Self {
        CORES.store(cores, Ordering::Relaxed);
        Self
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        CORES.store(ANY, Ordering::Relaxed);
    }
}

/// The place of this thread: of the client, 0, or of the back end, 1.
pub(crate) fn take(end: usize) {
    let mut cores = CpuSet::new();
    match CORES.load(Ordering::Relaxed) {
        ANY => (0..CpuSet::MAX_CPU).for_each(|core| cores.set(core)),
        shared => cores.set(end % shared),
    }
    sched_setaffinity(None, &cores).expect("a core that this process may use");
}
