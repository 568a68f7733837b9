//! Watching the configuration by looking at it, once a second.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::file_stamp::{FileStamp, read_stamp};

const EVERY: Duration = Duration::from_secs(1);

/// Changes of a file; none, ever, without one.
pub(super) struct Changes {
    path: Option<PathBuf>,
    seen: Option<FileStamp>,
    ticks: Interval,
}

impl Changes {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let seen = path.as_deref().and_then(read_stamp);
        Self { path, seen, ticks }
    }

    /// Waits for the next change. A file that is gone is no change; its return is one.
    pub(super) async fn next(&mut self) {
        let Some(path) = &self.path else { return std::future::pending().await };
        loop {
            self.ticks.tick().await;
            let now = read_stamp(path);
            if now.is_some() && now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}
