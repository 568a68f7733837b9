//! The directory of an instance's BPF pins, locked by its agent.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::bpf;

/// Locked directory of pins.
pub(super) struct PinDir {
    path: PathBuf,
    /// False while it holds flows that are not adopted yet: a start that fails must not end them.
    remove_on_drop: bool,
    _lock: File,
}

impl PinDir {
    /// Locks the directory, and removes the pins of an agent that was killed. Returns `None` without
    /// bpffs; the maps are then not pinned, and bpftool(8) finds them by id only.
    ///
    /// # Errors
    ///
    /// The directory cannot be created, or another agent of this name runs.
    pub(super) fn acquire_clean(instance: &str) -> Result<Option<Self>> {
        let pins = Self::lock(instance)?;
        // Pinned flows belong to the packet engine, which this agent does not load.
        if let Some(pins) = &pins {
            bpf::packet::detach_all(&pins.path);
            remove_entries(&pins.path, |_| true);
        }
        Ok(pins)
    }

    /// Locks the directory, and keeps the pins of the packet engine, whose flows outlive their agent.
    /// Returns `None` without bpffs.
    ///
    /// # Errors
    ///
    /// The directory cannot be created, or another agent of this name runs.
    pub(super) fn acquire_with_flows(instance: &str) -> Result<Option<Self>> {
        let mut pins = Self::lock(instance)?;
        if let Some(pins) = &mut pins {
            remove_entries(&pins.path, |name| !bpf::packet::is_own_pin(name));
            pins.remove_on_drop = fs::read_dir(&pins.path)?.next().is_none();
        }
        Ok(pins)
    }

    fn lock(instance: &str) -> Result<Option<Self>> {
        if !bpf::is_bpffs_mounted() {
            return Ok(None);
        }
        let path = bpf::pin_dir(instance);
        let context = || path.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(context)?;
        let lock = File::open(&path).with_context(context)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("instance: another snisplit runs as \"{instance}\"; give this one its own name");
        }
        Ok(Some(Self { path, remove_on_drop: true, _lock: lock }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes dropping this value remove the pins.
    pub(super) const fn remove_on_drop(&mut self) {
        self.remove_on_drop = true;
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        if !self.remove_on_drop {
            return;
        }
        bpf::packet::detach_all(&self.path);
        remove_entries(&self.path, |_| true);
        let _not_empty = fs::remove_dir(&self.path);
    }
}

fn remove_entries(dir: &Path, is_selected: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if is_selected(&entry.file_name().to_string_lossy()) {
            let _already_removed = fs::remove_file(entry.path());
        }
    }
}
