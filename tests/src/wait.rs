//! Waiting for conditions, with timeouts.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Timeout of everything in the lab: 20 s, multiplied by `SNISPLIT_TIMEOUT_FACTOR` on slow machines.
pub fn default_timeout() -> Duration {
    Duration::from_secs(20) * timeout_factor()
}

/// Whether `SNISPLIT_TIMEOUT_FACTOR` is above 1.
pub fn is_slow_machine() -> bool {
    timeout_factor() > 1
}

fn timeout_factor() -> u32 {
    std::env::var("SNISPLIT_TIMEOUT_FACTOR").map_or(1, |text| text.parse().unwrap())
}

/// Calls `probe` every 5 ms until it returns something. Panics after [`default_timeout`].
#[track_caller]
pub fn wait_until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_until_within(default_timeout(), what, probe)
}

/// Calls `probe` every 5 ms until it returns something. Panics after `timeout`.
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

/// Waits, for peers that are slow on purpose.
pub fn sleep_for(time: Duration) {
    let (_keep, nothing): (_, Receiver<()>) = channel();
    let _timeout = nothing.recv_timeout(time);
}
