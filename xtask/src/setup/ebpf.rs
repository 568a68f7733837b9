//! A compiler that can build `core` for BPF, and the bpf-linker of the same LLVM.
//!
//! Tried in this order: a rustup toolchain that has `rust-src` or can add it; Debian's own
//! `rustc-web`. The answer is a file that `proxy-user/build.rs` reads, kept outside the clone. The
//! user's default toolchain stays what it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{debian, say};
use crate::run::{cache, cargo, loud, quiet};

/// The LLVM that both pinned linkers are made for.
const LLVM: &str = "22";
/// Takes its LLVM from the rustup toolchain.
const LINKER_RUSTUP: &str = "0.10.3";
/// Is linked with Debian's libLLVM.
const LINKER_DEBIAN: &str = "0.13.0";

pub(super) fn ensure() -> Result<()> {
    let answer = cache()?.join("ebpf-toolchain");
    if let Ok(text) = fs::read_to_string(&answer)
        && let Some(toolchain) = still_true(&text)
    {
        say("eBPF toolchain", &format!("{toolchain} (found before)"));
        return Ok(());
    }
    let text = match by_rustup() {
        Ok(text) => text,
        Err(why) => {
            say("eBPF toolchain", &format!("none by rustup: {why:#}"));
            by_debian().context("no eBPF toolchain, neither by rustup nor from Debian")?
        }
    };
    fs::create_dir_all(cache()?)?;
    fs::write(&answer, text)?;
    Ok(())
}

/// The toolchain of an answer whose compiler and linker are both still the ones it names.
fn still_true(text: &str) -> Option<&str> {
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
    quiet(Command::new(&rustc[0]).args(&rustc[1..]).arg("-vV"))
}

fn answer(toolchain: &str, linker: &Path) -> Result<String> {
    let version = version(&rustc(toolchain))?;
    let rustc = version.lines().next().unwrap_or_default();
    say("eBPF toolchain", &format!("{toolchain}: {rustc}, {}", linker.display()));
    let linker = linker.display();
    Ok(format!("toolchain={toolchain}\nlinker={linker}\nrustc={rustc}\n"))
}

fn by_rustup() -> Result<String> {
    let list = quiet(Command::new("rustup").args(["toolchain", "list", "--quiet"]))
        .or_else(|_| quiet(Command::new("rustup").args(["toolchain", "list"])))?;
    let mut reasons = Vec::new();
    for toolchain in list.lines().filter_map(|line| line.split_whitespace().next()) {
        match has_sources(toolchain) {
            Ok(()) => {
                let linker = install_linker(LINKER_RUSTUP, toolchain, &[], "")?;
                return answer(toolchain, &linker);
            }
            Err(why) => reasons.push(format!("{toolchain}: {why:#}")),
        }
    }
    bail!("{}", if reasons.is_empty() { "no toolchain".into() } else { reasons.join("; ") })
}

/// The right LLVM, and the sources of `core`, added if they are not there.
fn has_sources(toolchain: &str) -> Result<()> {
    let version = version(&rustc(toolchain))?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    if llvm.is_none_or(|llvm| llvm.split('.').next() != Some(LLVM)) {
        bail!("its LLVM is {}, not {LLVM}", llvm.unwrap_or("unknown"));
    }
    let run = ["run", toolchain, "rustc", "--print", "sysroot"];
    let sysroot = quiet(Command::new("rustup").args(run))?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock").exists() {
        return Ok(());
    }
    say("eBPF toolchain", &format!("adding rust-src to {toolchain}"));
    let add = ["component", "add", "rust-src", "--toolchain", toolchain];
    quiet(Command::new("rustup").args(add)).map(drop)
}

fn by_debian() -> Result<String> {
    let packages = [
        "rustc-web",
        "cargo-web",
        "rust-web-src",
        "llvm-22-dev",
        "libzstd-dev",
        "zlib1g-dev",
        "g++",
    ];
    debian::ensure(&packages, "a compiler with the sources of core, and its LLVM")?;
    let features = ["--no-default-features", "--features", "llvm-22"];
    let linker = install_linker(LINKER_DEBIAN, "debian", &features, "-L /usr/lib/llvm-22/lib")?;
    answer("debian", &linker)
}

fn install_linker(
    version: &str,
    toolchain: &str,
    features: &[&str],
    rustflags: &str,
) -> Result<PathBuf> {
    let root = cache()?.join(format!("bpf-linker-{version}-{toolchain}"));
    if !root.join("bin/bpf-linker").exists() {
        say("bpf-linker", &format!("building {version}; this takes a minute or two"));
        let install = ["install", "--quiet", "--locked", "bpf-linker", "--version", version];
        let mut command = cargo();
        command.args(install).args(features).arg("--root").arg(&root);
        loud(command.env("RUSTFLAGS", rustflags))?;
    }
    Ok(root.join("bin"))
}
