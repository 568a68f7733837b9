//! When what a load does counts.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::measurement::cpu_seconds;

/// How long a load's connections work before that: they do not begin at once, and the first ones have the machine
/// for themselves.
pub(crate) const WARM_UP: Duration = Duration::from_millis(50);

/// Connections begin before it, and end after it.
pub(crate) struct Window {
    range: Range<Instant>,
    /// When it had begun, and seconds of CPU so far.
    start_reading: OnceLock<(Instant, f64)>,
    /// When it was over, likewise.
    end_reading: OnceLock<(Instant, f64)>,
}

impl Window {
    /// So long, and as soon as that.
    pub(crate) fn new(warm_up: Duration, time: Duration) -> Self {
        let start = Instant::now() + warm_up;
        Self {
            range: start..start + time,
            start_reading: OnceLock::new(),
            end_reading: OnceLock::new(),
        }
    }

    /// Whether what has ended now counts. Whoever works looks at the clock of the CPU: a thread that only waits
    /// for the moment gets no core at it where all are busy.
    pub(crate) fn contains(&self, now: Instant) -> bool {
        if now >= self.range.start {
            self.start_reading.get_or_init(cpu_reading);
        }
        self.range.contains(&now)
    }

    /// Whether nothing counts any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let is_over = now >= self.range.end;
        if is_over {
            self.end_reading.get_or_init(cpu_reading);
        }
        is_over
    }

    /// Seconds that it took, and seconds of CPU in it.
    pub(crate) fn seconds_and_cpu(&self) -> (f64, f64) {
        let took = (self.range.end - self.range.start).as_secs_f64();
        let [first, last] = [&self.start_reading, &self.end_reading]
            .map(|it| it.get().expect("a load that worked"));
        let cores = (last.1 - first.1) / (last.0 - first.0).as_secs_f64();
        (took, cores * took)
    }
}

fn cpu_reading() -> (Instant, f64) {
    let spent = cpu_seconds();
    (Instant::now(), spent)
}
