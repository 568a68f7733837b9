//! A compiler that can build `core` for BPF, and the bpf-linker of the same LLVM.
//!
//! Set-up tries two sources in this order: a rustup toolchain that has `rust-src` or can add it, then
//! Debian's `rustc-web`. It writes what it found to a file in the cache, which `proxy-user/build.rs`
//! reads. The default toolchain of the user does not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::debian;
use super::progress::report;
use crate::run::{cache, capture_stdout, cargo, run_echoed};

/// Major version of LLVM that both pinned linkers support.
const LLVM: &str = "22";
/// Version of bpf-linker that loads the LLVM of a rustup toolchain.
const LINKER_RUSTUP: &str = "0.10.3";
/// Version of bpf-linker that is linked with Debian's libLLVM.
const LINKER_DEBIAN: &str = "0.13.0";

const DEBIAN_PACKAGES: [&str; 7] =
    ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev", "libzstd-dev", "zlib1g-dev", "g++"];

/// Finds or installs a toolchain and its linker.
pub(super) fn ensure() -> Result<()> {
    if let Some(toolchain) = recorded()? {
        report("eBPF toolchain", &format!("{toolchain} (found before)"));
        return Ok(());
    }
    let text = match from_rustup() {
        Ok(text) => text,
        Err(why) => {
            report("eBPF toolchain", &format!("none from rustup: {why:#}"));
            from_debian().context("no eBPF toolchain, neither from rustup nor from Debian")?
        }
    };
    fs::create_dir_all(cache()?)?;
    fs::write(record_path()?, text)?;
    Ok(())
}

/// What [`ensure`] would do, as far as it can be known before.
pub(super) fn plan() -> Result<Vec<String>> {
    if recorded()?.is_some() {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    let suitable = toolchains().unwrap_or_default();
    let suitable = suitable.iter().find(|toolchain| check_llvm(toolchain).is_ok());
    let linker = match suitable {
        Some(toolchain) => {
            if !has_sources(toolchain)? {
                steps.push(format!("rustup component add rust-src --toolchain {toolchain}"));
            }
            (LINKER_RUSTUP, toolchain.as_str())
        }
        None => {
            steps.extend(debian::plan(&DEBIAN_PACKAGES));
            (LINKER_DEBIAN, "debian")
        }
    };
    let (version, toolchain) = linker;
    let folder = linker_folder(version, toolchain)?;
    if !folder.join("bin/bpf-linker").exists() {
        let folder = folder.display();
        steps.push(format!("build bpf-linker {version} into {folder} (1 to 2 minutes)"));
    }
    steps.push(format!("write {}", record_path()?.display()));
    Ok(steps)
}

/// File with the toolchain that was found.
fn record_path() -> Result<PathBuf> {
    Ok(cache()?.join("ebpf-toolchain"))
}

/// The recorded toolchain, if its compiler and its linker are still those of the record.
fn recorded() -> Result<Option<String>> {
    let text = fs::read_to_string(record_path()?).unwrap_or_default();
    Ok(parse_valid(&text).map(str::to_owned))
}

fn parse_valid(text: &str) -> Option<&str> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let toolchain = value("toolchain")?;
    let linker = Path::new(value("linker")?).join("bpf-linker");
    let same = version(&rustc(toolchain)).ok()?.lines().next() == value("rustc");
    (same && linker.exists()).then_some(toolchain)
}

fn rustc(toolchain: &str) -> Vec<String> {
    let words: &[&str] = match toolchain {
        "debian" => &["/usr/bin/rustc"],
        _ => &["rustup", "run", toolchain, "rustc"],
    };
    words.iter().map(|&word| word.to_owned()).collect()
}

fn version(rustc: &[String]) -> Result<String> {
    capture_stdout(Command::new(&rustc[0]).args(&rustc[1..]).arg("-vV"))
}

/// The text of the record.
fn record(toolchain: &str, linker: &Path) -> Result<String> {
    let version = version(&rustc(toolchain))?;
    let rustc = version.lines().next().unwrap_or_default();
    report("eBPF toolchain", &format!("{toolchain}: {rustc}, {}", linker.display()));
    let linker = linker.display();
    Ok(format!("toolchain={toolchain}\nlinker={linker}\nrustc={rustc}\n"))
}

fn from_rustup() -> Result<String> {
    let mut reasons = Vec::new();
    for toolchain in toolchains()? {
        match check_llvm(&toolchain).and_then(|()| ensure_sources(&toolchain)) {
            Ok(()) => {
                let linker = install_linker(LINKER_RUSTUP, &toolchain, &[], "")?;
                return record(&toolchain, &linker);
            }
            Err(why) => reasons.push(format!("{toolchain}: {why:#}")),
        }
    }
    bail!("{}", if reasons.is_empty() { "no toolchain".into() } else { reasons.join("; ") })
}

/// Names of the rustup toolchains.
fn toolchains() -> Result<Vec<String>> {
    let list = capture_stdout(Command::new("rustup").args(["toolchain", "list", "--quiet"]))
        .or_else(|_| capture_stdout(Command::new("rustup").args(["toolchain", "list"])))?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

/// Fails unless a toolchain has the LLVM that the linkers support.
fn check_llvm(toolchain: &str) -> Result<()> {
    let version = version(&rustc(toolchain))?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    if llvm.is_none_or(|llvm| llvm.split('.').next() != Some(LLVM)) {
        bail!("its LLVM is {}, not {LLVM}", llvm.unwrap_or("unknown"));
    }
    Ok(())
}

/// Whether a rustup toolchain has the sources of `core`.
fn has_sources(toolchain: &str) -> Result<bool> {
    let run = ["run", toolchain, "rustc", "--print", "sysroot"];
    let sysroot = capture_stdout(Command::new("rustup").args(run))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock").exists())
}

fn ensure_sources(toolchain: &str) -> Result<()> {
    if has_sources(toolchain)? {
        return Ok(());
    }
    report("eBPF toolchain", &format!("adding rust-src to {toolchain}"));
    let add = ["component", "add", "rust-src", "--toolchain", toolchain];
    capture_stdout(Command::new("rustup").args(add)).map(drop)
}

fn from_debian() -> Result<String> {
    debian::ensure(&DEBIAN_PACKAGES, "a compiler with the sources of core, and its LLVM")?;
    let features = ["--no-default-features", "--features", "llvm-22"];
    let linker = install_linker(LINKER_DEBIAN, "debian", &features, "-L /usr/lib/llvm-22/lib")?;
    record("debian", &linker)
}

fn linker_folder(version: &str, toolchain: &str) -> Result<PathBuf> {
    Ok(cache()?.join(format!("bpf-linker-{version}-{toolchain}")))
}

fn install_linker(
    version: &str,
    toolchain: &str,
    features: &[&str],
    rustflags: &str,
) -> Result<PathBuf> {
    let root = linker_folder(version, toolchain)?;
    if !root.join("bin/bpf-linker").exists() {
        report("bpf-linker", &format!("building {version}; this takes 1 to 2 minutes"));
        let install = ["install", "--quiet", "--locked", "bpf-linker", "--version", version];
        let mut command = cargo();
        command.args(install).args(features).arg("--root").arg(&root);
        run_echoed(command.env("RUSTFLAGS", rustflags))?;
    }
    Ok(root.join("bin"))
}
