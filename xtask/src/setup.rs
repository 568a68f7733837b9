//! Finds or installs what building and testing need. A second run finds it all and takes a second.

use std::path::PathBuf;

use anyhow::Result;

use crate::run::cache;

mod debian;
mod deny;
mod ebpf;
mod kernels;
mod peers;
mod progress;

pub(crate) use deny::{ensure as deny, find as find_deny};
pub(crate) use kernels::{Kernel, ensure as kernel};
pub(crate) use peers::folder as peers;

/// Installs what building and testing need, and returns the folder of the peers from PyPI.
///
/// # Errors
/// Fails if something cannot be installed.
pub(crate) fn all() -> Result<PathBuf> {
    toolchain()?;
    peers::ensure()
}

/// Installs what compiling needs. `proxy-user/build.rs` reads which eBPF toolchain was found.
///
/// # Errors
/// Fails if something cannot be installed.
pub(crate) fn toolchain() -> Result<()> {
    debian::ensure(&debian::COMPILER, "a C compiler and its headers, to link with")?;
    ebpf::ensure()
}

/// Prints what [`all`] would install, build and write, and where. Changes nothing.
///
/// # Errors
/// Fails if the cache folder is unknown.
pub(crate) fn print_plan(with_deny: bool) -> Result<()> {
    let mut steps = debian::plan(&debian::COMPILER);
    steps.extend(ebpf::plan()?);
    steps.extend(peers::plan()?);
    if with_deny {
        steps.extend(deny::plan()?);
    }
    steps.iter().for_each(|step| println!("{step}"));
    match steps.len() {
        0 => println!("setup: nothing to do; the cache is {}", cache()?.display()),
        count => println!("setup: {count} steps to do; the cache is {}", cache()?.display()),
    }
    Ok(())
}
