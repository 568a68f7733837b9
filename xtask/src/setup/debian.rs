//! Debian packages, installed without starting the services that some of them bring.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::progress::report;
use crate::run::{as_root, capture_stdout, is_root, run_echoed};

/// Packages that compiling needs.
pub(super) const COMPILER: [&str; 2] = ["gcc", "libc6-dev"];

/// While this file exists, no package starts a daemon (Debian policy §9.3.3.2).
const POLICY_RC_D: &str = "/usr/sbin/policy-rc.d";

/// Installs those of `packages` that are missing. `purpose` is for the person who reads the output.
pub(super) fn ensure(packages: &[&str], purpose: &str) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    report("packages", &format!("installing {} ({purpose})", missing.join(" ")));
    if capture_stdout(Command::new("apt-get").arg("--version")).is_err() {
        bail!("there is no apt-get; install by hand what Debian calls {}", missing.join(", "));
    }
    let _policy = PolicyRcD::create()?;
    run_echoed(as_root("apt-get").args(["-qq", "update"]))?;
    let install = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "install"];
    run_echoed(as_root("env").args(install).arg("--no-install-recommends").args(&missing))
        .with_context(|| format!("{} could not be installed", missing.join(", ")))
}

/// What [`ensure`] would do.
pub(super) fn plan(packages: &[&str]) -> Vec<String> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Vec::new();
    }
    let mut steps = Vec::new();
    if is_root() && !Path::new(POLICY_RC_D).exists() {
        steps.push(format!("create {POLICY_RC_D} while apt-get runs, so that no daemon starts"));
    }
    let how = if is_root() { "" } else { "sudo " };
    steps.push(format!("{how}apt-get update; {how}apt-get install {}", missing.join(" ")));
    steps
}

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages.iter().copied().filter(|name| !is_installed(name)).collect()
}

fn is_installed(package: &str) -> bool {
    let status = ["-W", "-f", "${db:Status-Status}", package];
    capture_stdout(Command::new("dpkg-query").args(status))
        .is_ok_and(|status| status == "installed")
}

/// Removes [`POLICY_RC_D`] when dropped. Only root creates it: with sudo, the daemons of nginx and
/// HAProxy may start.
struct PolicyRcD {
    is_created: bool,
}

impl PolicyRcD {
    fn create() -> Result<Self> {
        if Path::new(POLICY_RC_D).exists() || !is_root() {
            return Ok(Self { is_created: false });
        }
        fs::write(POLICY_RC_D, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(POLICY_RC_D, fs::Permissions::from_mode(0o755))?;
        Ok(Self { is_created: true })
    }
}

impl Drop for PolicyRcD {
    fn drop(&mut self) {
        if self.is_created {
            let _absent = fs::remove_file(POLICY_RC_D);
        }
    }
}
