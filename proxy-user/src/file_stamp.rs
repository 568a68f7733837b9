//! Detection of changes of a file, by polling.
//!
//! Editors, Kubernetes and ACME clients replace a file, or a symbolic link on its path, rather than
//! write the file. stat(2) follows the path each time. inotify(7) would need a watch on every directory
//! of the path.

use std::path::Path;
use std::time::SystemTime;

use rustix::fs::stat;

/// Inode, size and modification time of a file. A change of one of them means new content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    inode: u64,
    size: i64,
    modified: Option<SystemTime>,
}

/// Reads the stamp of the file at a path; `None` if there is none.
pub(crate) fn read_stamp(path: &Path) -> Option<FileStamp> {
    let modified = std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let status = stat(path).ok()?;
    Some(FileStamp { inode: status.st_ino, size: status.st_size, modified })
}
