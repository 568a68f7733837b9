//! Whether a file has changed, told by looking at it.
//!
//! Editors, Kubernetes and ACME clients replace a file rather than write it; what a path leads to is
//! what counts, and a look answers that without watching every folder on the way (inotify(7),
//! limitations).

use std::path::Path;
use std::time::SystemTime;

use rustix::fs::stat;

/// What tells one content from another: the file itself, its size, its time of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    inode: u64,
    size: i64,
    modified: Option<SystemTime>,
}

/// The version that a path leads to now.
pub(crate) fn read_stamp(path: &Path) -> Option<FileStamp> {
    let modified = std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let status = stat(path).ok()?;
    Some(FileStamp { inode: status.st_ino, size: status.st_size, modified })
}
