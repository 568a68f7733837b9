//! Debian's kernels, unpacked and not installed, and virtme-ng, which boots them with the files of this
//! machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::debian;
use super::peers::{self, Wheel};
use super::progress::report;
use crate::run::{cache, capture_stdout, run_echoed};

const PACKAGES: [&str; 4] = ["busybox-static", "kmod", "qemu-system-x86", "udev"];
const VIRTME: Wheel = Wheel { program: "vng", requirement: "virtme-ng==1.42" };

/// A kernel to boot.
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// Folder of virtme-ng's programs.
    pub(crate) programs: PathBuf,
}

/// Unpacks a kernel of this version, such as `6.1`. If none is there yet, it is the newest of them.
///
/// # Errors
/// Fails if Debian has no such kernel, or if something cannot be installed.
pub(crate) fn ensure(version: &str) -> Result<Kernel> {
    debian::ensure(&PACKAGES, "to boot another kernel")?;
    let bin = peers::environment()?;
    peers::ensure_wheel(&bin, &VIRTME)?;
    let kernels = cache()?.join("kernels");
    fs::create_dir_all(&kernels)?;
    let image = match image(&kernels.join(version)) {
        Some(image) => image,
        None => unpack(version, &kernels)?,
    };
    report("kernel", &image.display().to_string());
    Ok(Kernel { image, programs: bin })
}

fn unpack(version: &str, kernels: &Path) -> Result<PathBuf> {
    let pattern = format!("^linux-image-{}[.+-].*-amd64-unsigned$", version.replace('.', "[.]"));
    let found =
        capture_stdout(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    let names = found.lines().filter_map(|line| line.split(' ').next());
    let plain = names.filter(|name| !name.contains("-cloud-") && !name.contains("-rt-"));
    let newest = plain.max_by_key(|name| numbers(name));
    let newest = newest.with_context(|| {
        format!("apt-cache finds no package {pattern}; is it a kernel of Debian?")
    })?;
    report("kernel", &format!("downloading {newest}"));
    let folder = kernels.join(format!("new-{}", std::process::id()));
    fs::create_dir(&folder)?;
    run_echoed(Command::new("apt-get").current_dir(&folder).args(["-qq", "download", newest]))?;
    let package = fs::read_dir(&folder)?.next().context("nothing was downloaded")??.path();
    run_echoed(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&folder))?;
    fs::remove_file(package)?;
    fs::rename(&folder, kernels.join(version))?;
    image(&kernels.join(version)).with_context(|| format!("no kernel in {newest}"))
}

/// `linux-image-6.1.0-56-amd64` is newer than `…-9-…`.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|char: char| !char.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn image(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder.join("boot")).ok()?.flatten().map(|file| file.path());
    let mut images = files.filter(|path| path.to_string_lossy().contains("/vmlinuz-"));
    images.next()
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(numbers("linux-image-6.1.0-56-amd64") > numbers("linux-image-6.1.0-9-amd64"));
        assert!(numbers("linux-image-6.12.9+deb12-amd64") > numbers("linux-image-6.1.99-amd64"));
    }
}
