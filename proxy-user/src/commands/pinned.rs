//! The pins of an instance in bpffs.

use anyhow::{Context as _, Result};
use snisplit_common::abi::sockmap::DirectionEntry;

use crate::bpf::inspect::PinnedState;
use crate::bpf::{self, pin_dir};

/// Reads the pinned maps of an instance; `None` if nothing is pinned.
///
/// # Errors
///
/// A pin cannot be read.
pub(super) fn read_pinned(instance: &str) -> Result<Option<PinnedState>> {
    let dir = pin_dir(instance);
    match bpf::is_bpffs_mounted() && dir.exists() {
        true => PinnedState::read(&dir).with_context(|| pin_dir_text(instance)).map(Some),
        false => Ok(None),
    }
}

/// Formats the path of an instance's pins.
pub(super) fn pin_dir_text(instance: &str) -> String {
    pin_dir(instance).display().to_string()
}

/// Sums the bytes that a direction has moved, by redirection and through user space.
pub(super) const fn total_bytes(entry: &DirectionEntry) -> u64 {
    entry.redirected_bytes + entry.passed_bytes
}
