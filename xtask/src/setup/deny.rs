//! cargo-deny, which only checks the RustSec advisories here: everything else of deny.toml is checked
//! without it. It takes about 8 minutes to build on 2 cores, so set-up builds it on request only.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::progress::report;
use crate::run::{cache, capture_stdout, cargo, run_echoed};

const VERSION: &str = "0.20.2";

/// Builds cargo-deny into the cache unless it is there or on `PATH`.
///
/// # Errors
/// Fails if it does not build.
pub(crate) fn ensure() -> Result<()> {
    if let Some(program) = find() {
        report("cargo-deny", &format!("{} (found)", program.display()));
        return Ok(());
    }
    report("cargo-deny", &format!("building {VERSION}; this takes about 8 minutes"));
    let install = ["install", "--quiet", "--locked", "cargo-deny", "--version", VERSION];
    run_echoed(cargo().args(install).arg("--root").arg(folder()?))
}

/// The program: from `PATH`, else from the cache.
pub(crate) fn find() -> Option<PathBuf> {
    let cached = folder().ok()?.join("bin/cargo-deny");
    let candidates = [PathBuf::from("cargo-deny"), cached];
    candidates
        .into_iter()
        .find(|program| capture_stdout(Command::new(program).arg("--version")).is_ok())
}

/// What [`ensure`] would do.
pub(super) fn plan() -> Result<Vec<String>> {
    let folder = folder()?;
    let step = format!("build cargo-deny {VERSION} into {} (about 8 minutes)", folder.display());
    Ok(if find().is_some() { Vec::new() } else { vec![step] })
}

fn folder() -> Result<PathBuf> {
    Ok(cache()?.join(format!("cargo-deny-{VERSION}")))
}
