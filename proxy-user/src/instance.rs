//! The instance file of a running agent: `/run/snisplit/<instance>.json`, which `snisplit status` reads.
//!
//! The agent holds an flock(2) on the file for as long as it lives. A file without a lock is left over
//! from an agent that was killed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

const RUNTIME_DIR: &str = "/run/snisplit";

/// Content of the instance file; also `agent` of `snisplit status --output json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct InstanceInfo {
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// Start of the agent, seconds since 1970.
    pub(crate) started_at: u64,
    /// Value of the key `engine`.
    pub(crate) engine: String,
    pub(crate) sockmap_status: SockmapStatus,
    /// Sentence about `sockmap_status`, with the reason of a failure.
    pub(crate) sockmap_description: String,
}

/// Whether the sockmap engine is in use, and what its self-test found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SockmapStatus {
    /// The configuration names another engine.
    NotRequested,
    Works,
    /// The kernel has a known bug, so `engine = "auto"` does not use sockmap.
    KernelBug,
    /// The programs cannot be loaded, or the self-test failed.
    Failed,
}

/// Lock on the instance file of this agent. Dropping it removes the file.
pub(crate) struct InstanceLock {
    path: PathBuf,
    _lock: File,
}

fn info_path(instance: &str) -> PathBuf {
    Path::new(RUNTIME_DIR).join(instance).with_added_extension("json")
}

impl InstanceInfo {
    /// Writes and locks the instance file.
    ///
    /// # Errors
    ///
    /// The file cannot be written; `WouldBlock` if another agent of this name runs.
    pub(crate) fn publish(&self, instance: &str) -> io::Result<InstanceLock> {
        let path = info_path(instance);
        fs::create_dir_all(RUNTIME_DIR)?;
        let mut file = File::options().create(true).truncate(false).write(true).open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(InstanceLock { path, _lock: file })
    }

    /// Reads the instance file of a running agent; `None` if none of this name runs.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or an agent of another version wrote it.
    pub(crate) fn read_running(instance: &str) -> io::Result<Option<Self>> {
        let file = match File::open(info_path(instance)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(_) => Ok(Some(serde_json::from_reader(file)?)),
        }
    }
}

impl Drop for InstanceLock {
    fn drop(&mut self) {
        let _already_removed = fs::remove_file(&self.path);
    }
}
