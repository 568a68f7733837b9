//! The note that a running agent leaves for `snisplit status`: `/run/snisplit/<instance>.json`, locked
//! (flock(2)) for as long as the agent lives.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

const RUNTIME_DIR: &str = "/run/snisplit";

/// What the agent says of itself at its start.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct InstanceInfo {
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// Seconds since 1970.
    pub(crate) started: u64,
    /// What `engine` says.
    pub(crate) engine: String,
    /// Whether the kernel's engine is in use, and what its trial came to.
    pub(crate) sockmap: String,
}

/// The note of this agent; dropping it removes it.
pub(crate) struct InstanceLock {
    path: PathBuf,
    _lock: File,
}

fn info_path(instance: &str) -> PathBuf {
    Path::new(RUNTIME_DIR).join(instance).with_added_extension("json")
}

impl InstanceInfo {
    /// Writes the note. `WouldBlock`: another agent of this name runs.
    pub(crate) fn publish(&self, instance: &str) -> io::Result<InstanceLock> {
        let path = info_path(instance);
        fs::create_dir_all(RUNTIME_DIR)?;
        let mut file = File::options().create(true).truncate(false).write(true).open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(InstanceLock { path, _lock: file })
    }

    /// The note of a running agent.
    pub(crate) fn read_running(instance: &str) -> io::Result<Option<Self>> {
        let file = match File::open(info_path(instance)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        // One that was killed has left its note behind, without a lock.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(_) => Ok(Some(serde_json::from_reader(file)?)),
        }
    }
}

impl Drop for InstanceLock {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}
