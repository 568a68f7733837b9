//! What the engines of an instance have pinned in bpffs.

use std::path::Path;

use anyhow::{Context as _, Result};
use snisplit_common::abi::DirectionEntry;

use crate::bpf::inspect::PinnedState;
use crate::bpf::{self, pin_dir};

/// `None` if nothing is pinned.
pub(super) fn read_pinned(instance: &str) -> Result<Option<PinnedState>> {
    let folder = pin_dir(instance);
    match bpf::is_bpffs_mounted() && folder.exists() {
        true => PinnedState::read(&folder).with_context(|| pin_dir_text(instance)).map(Some),
        false => Ok(None),
    }
}

pub(super) fn pin_dir_text(instance: &str) -> String {
    Path::display(&pin_dir(instance)).to_string()
}

pub(super) const fn total_bytes(flow: &DirectionEntry) -> u64 {
    flow.redirected_bytes + flow.passed_bytes
}
