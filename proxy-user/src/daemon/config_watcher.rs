//! The watcher of the configuration file, which polls the file once a second.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::file_stamp::{FileStamp, read_stamp};

const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Watcher of one file. Without a path it never reports a change.
pub(super) struct ConfigWatcher {
    path: Option<PathBuf>,
    last_stamp: Option<FileStamp>,
    ticks: Interval,
}

impl ConfigWatcher {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let last_stamp = path.as_deref().and_then(read_stamp);
        Self { path, last_stamp, ticks }
    }

    /// Waits for the next change. The removal of the file is no change. A new file at the path is one.
    pub(super) async fn changed(&mut self) {
        let Some(path) = &self.path else { return std::future::pending().await };
        loop {
            self.ticks.tick().await;
            let current = read_stamp(path);
            if current.is_some() && current != self.last_stamp {
                self.last_stamp = current;
                return;
            }
        }
    }
}
