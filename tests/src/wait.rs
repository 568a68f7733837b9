//! Waiting for conditions, with deadlines.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long anything in the lab may take before it counts as a failure: 20 s, or `SNISPLIT_PATIENCE` times
/// that on a machine that is so much slower.
pub fn patience() -> Duration {
    Duration::from_secs(20) * times()
}

/// Whether this is such a machine.
pub fn is_slow() -> bool {
    times() > 1
}

fn times() -> u32 {
    std::env::var("SNISPLIT_PATIENCE").map_or(1, |text| text.parse().unwrap())
}

/// Looks every 5 ms until there is something, and fails after [`patience`].
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(patience(), what, look)
}

/// The same for what may take longer, or must not.
#[track_caller]
pub fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} for: {what}");
        pass(Duration::from_millis(5));
    }
}

/// Lets time pass, for peers that are slow on purpose.
pub fn pass(time: Duration) {
    let (_keep, nothing): (_, Receiver<()>) = channel();
    let _timeout = nothing.recv_timeout(time);
}
