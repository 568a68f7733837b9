//! Finds or installs what building and testing need. A second run finds it all and takes a second.

use std::path::PathBuf;

use anyhow::Result;

mod debian;
mod ebpf;
mod kernels;
mod peers;

pub(crate) use kernels::ensure as kernel;

/// Everything.
pub(crate) fn all() -> Result<PathBuf> {
    toolchain()?;
    peers::ensure()
}

/// What compiling needs: `proxy-user/build.rs` reads the answer.
pub(crate) fn toolchain() -> Result<()> {
    debian::ensure(&["gcc", "libc6-dev"], "a C compiler and its headers, to link with")?;
    ebpf::ensure()
}

/// Says a finding in one line.
fn say(what: &str, how: &str) {
    eprintln!("setup: {what:<16} {how}");
}
