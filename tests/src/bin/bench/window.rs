//! The time window in which the work of a load counts.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::cpu_time::busy_seconds;

/// Time from the first connection to the start of a window. Connections do not start at the same time, and the first ones
/// have the machine for themselves.
pub(crate) const WARM_UP: Duration = Duration::from_millis(50);

/// A time window. Connections open before it, and close after it.
pub(crate) struct Window {
    range: Range<Instant>,
    /// Time and CPU seconds at the first call of [`Self::contains`] after its begin.
    start_reading: OnceLock<(Instant, f64)>,
    /// Time and CPU seconds at the first call of [`Self::is_over`] after its end.
    end_reading: OnceLock<(Instant, f64)>,
}

impl Window {
    /// A window of length `time` that begins after `warm_up`.
    pub(crate) fn new(warm_up: Duration, time: Duration) -> Self {
        let start = Instant::now() + warm_up;
        Self {
            range: start..start + time,
            start_reading: OnceLock::new(),
            end_reading: OnceLock::new(),
        }
    }

    /// Whether work that has ended now counts. The threads of the load read the CPU time, because a thread that waits for
    /// the start of the window gets no core while all are busy.
    pub(crate) fn contains(&self, now: Instant) -> bool {
        if now >= self.range.start {
            self.start_reading.get_or_init(cpu_reading);
        }
        self.range.contains(&now)
    }

    /// Whether the window has ended.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let is_over = now >= self.range.end;
        if is_over {
            self.end_reading.get_or_init(cpu_reading);
        }
        is_over
    }

    /// Length of the window in seconds, and CPU seconds in it.
    pub(crate) fn seconds_and_cpu(&self) -> (f64, f64) {
        let took = (self.range.end - self.range.start).as_secs_f64();
        let [first, last] = [&self.start_reading, &self.end_reading]
            .map(|it| it.get().expect("a load that has run"));
        let cores = (last.1 - first.1) / (last.0 - first.0).as_secs_f64();
        (took, cores * took)
    }
}

fn cpu_reading() -> (Instant, f64) {
    let cpu_seconds = busy_seconds();
    (Instant::now(), cpu_seconds)
}
