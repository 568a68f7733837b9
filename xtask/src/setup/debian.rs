//! Debian packages, installed without starting the services that some of them bring.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::say;
use crate::run::{as_root, is_root, loud, quiet};

/// Installs what is missing of `packages`.
pub(super) fn ensure(packages: &[&str], what_for: &str) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    say("packages", &format!("installing {} ({what_for})", missing.join(" ")));
    if quiet(Command::new("apt-get").arg("--version")).is_err() {
        bail!("no apt-get here; install by hand what Debian calls {}", missing.join(", "));
    }
    let _no_services = PolicyRcD::lay_down()?;
    loud(as_root("apt-get").args(["-qq", "update"]))?;
    let install = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "install"];
    loud(as_root("env").args(install).arg("--no-install-recommends").args(&missing))
        .with_context(|| format!("{} could not be installed", missing.join(", ")))
}

fn is_installed(package: &str) -> bool {
    let status = ["-W", "-f", "${db:Status-Status}", package];
    quiet(Command::new("dpkg-query").args(status)).is_ok_and(|status| status == "installed")
}

/// While it lies there, no package starts a daemon (Debian policy §9.3.3.2). Laid down as root only:
/// by sudo the daemons of nginx and HAProxy may start.
struct PolicyRcD(Option<&'static Path>);

impl PolicyRcD {
    fn lay_down() -> Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() || !is_root() {
            return Ok(Self(None));
        }
        fs::write(path, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for PolicyRcD {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _gone_already = fs::remove_file(path);
        }
    }
}
