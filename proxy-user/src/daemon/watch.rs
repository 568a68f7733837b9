//! Watching the file by looking at it, once a second.
//!
//! Editors and Kubernetes replace a file rather than write it; what a path leads to is what counts,
//! and a look answers that without watching every folder on the way (inotify(7), limitations).

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::stat;
use tokio::time::{Interval, MissedTickBehavior, interval};

const EVERY: Duration = Duration::from_secs(1);

/// Changes of a file; none, ever, without one.
pub(super) struct Changes {
    path: Option<PathBuf>,
    seen: Option<Version>,
    ticks: Interval,
}

/// What tells one content from another: the file itself, its size, its time of change.
#[derive(PartialEq)]
struct Version {
    inode: u64,
    size: i64,
    changed: Option<SystemTime>,
}

impl Changes {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let seen = path.as_ref().and_then(version);
        Self { path, seen, ticks }
    }

    /// Waits for the next change. A file that is gone is no change; its return is one.
    pub(super) async fn next(&mut self) {
        let Some(path) = &self.path else { return std::future::pending().await };
        loop {
            self.ticks.tick().await;
            let now = version(path);
            if now.is_some() && now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}

fn version(path: &PathBuf) -> Option<Version> {
    let changed = std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let status = stat(path).ok()?;
    Some(Version { inode: status.st_ino, size: status.st_size, changed })
}
