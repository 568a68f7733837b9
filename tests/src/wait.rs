//! Waiting for conditions, with deadlines.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long anything in the lab may take before it counts as a failure: 20 s, or `SNISPLIT_TIMEOUT_FACTOR` times
/// that on a machine that is so much slower.
pub fn default_timeout() -> Duration {
    Duration::from_secs(20) * timeout_factor()
}

/// Whether this is such a machine.
pub fn is_slow_machine() -> bool {
    timeout_factor() > 1
}

fn timeout_factor() -> u32 {
    std::env::var("SNISPLIT_TIMEOUT_FACTOR").map_or(1, |text| text.parse().unwrap())
}

/// Looks every 5 ms until there is something, and fails after [`default_timeout`].
#[track_caller]
pub fn wait_until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_until_within(default_timeout(), what, probe)
}

/// The same for what may take longer, or must not.
#[track_caller]
pub fn wait_until_within<T>(
    timeout: Duration,
    what: &str,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {timeout:?} for: {what}");
        sleep_for(Duration::from_millis(5));
    }
}

/// Lets time pass, for peers that are slow on purpose.
pub fn sleep_for(time: Duration) {
    let (_keep, nothing): (_, Receiver<()>) = channel();
    let _timeout = nothing.recv_timeout(time);
}
