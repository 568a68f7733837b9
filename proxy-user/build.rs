//! Builds the BPF programs and writes the object files to `OUT_DIR`.
//!
//! `cargo xtask setup` finds a compiler and a bpf-linker with the same LLVM, and records them in
//! `$XDG_CACHE_HOME/snisplit/ebpf-toolchain`. Without this file, the build uses a nightly toolchain and
//! the bpf-linker on `PATH`.
//!
//! The script runs itself a second time to call aya-build, because `RUSTC_BOOTSTRAP` must be set for the
//! build of the BPF programs only.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

const INNER_BUILD_ENV: &str = "SNISPLIT_BUILD_EBPF";
const TOOLCHAIN_ENV: &str = "SNISPLIT_EBPF_TOOLCHAIN";

fn main() -> Result<()> {
    if env::var_os(INNER_BUILD_ENV).is_some() {
        return build_ebpf_object();
    }
    println!("cargo:rerun-if-changed=build.rs");
    // The profiles there apply to the BPF programs too, which aya-build does not consider.
    println!("cargo:rerun-if-changed=../Cargo.toml");
    println!("cargo:rerun-if-env-changed={TOOLCHAIN_ENV}");
    let mut inner = Command::new(env::current_exe()?);
    inner.env(INNER_BUILD_ENV, "1");
    if let Some(toolchain_file) = toolchain_file_path() {
        println!("cargo:rerun-if-changed={}", toolchain_file.display());
        if let Ok(text) = fs::read_to_string(&toolchain_file) {
            inner.envs(inner_environment(&text));
        }
    }
    let output = inner.stderr(Stdio::inherit()).output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        print!("{stdout}");
        bail!(
            "the BPF programs did not build; `cargo xtask setup` finds or installs the eBPF \
             toolchain (rust-src and a bpf-linker of the same LLVM)"
        );
    }
    stdout.lines().filter(|line| !is_cargo_progress(line)).for_each(|line| println!("{line}"));
    Ok(())
}

/// Returns whether a line is progress of the inner cargo. aya-build prints every line of it as a warning.
fn is_cargo_progress(line: &str) -> bool {
    let verb = line.strip_prefix("cargo:warning=").and_then(|text| text.split_whitespace().next());
    let cargo_verbs = ["Compiling", "Finished", "Downloading", "Downloaded", "Updating", "Locking"];
    verb.is_some_and(|verb| cargo_verbs.contains(&verb) || verb.starts_with("which(rustup)"))
}

/// Returns the environment of the second run. For Debian's compiler, `PATH` lacks rustup, which aya-build
/// would prefer.
fn inner_environment(toolchain_file: &str) -> Vec<(&'static str, String)> {
    let value = |key: &str| toolchain_file.lines().find_map(|line| line.strip_prefix(key));
    let linker = value("linker=").unwrap_or_default();
    let toolchain = value("toolchain=").unwrap_or("nightly");
    let path = match toolchain {
        "debian" => String::from("/usr/sbin:/usr/bin:/sbin:/bin"),
        _ => env::var("PATH").unwrap_or_default(),
    };
    vec![
        ("PATH", format!("{linker}:{path}")),
        ("RUSTC_BOOTSTRAP", String::from("1")),
        (TOOLCHAIN_ENV, toolchain.to_owned()),
    ]
}

fn toolchain_file_path() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(cache.join("snisplit/ebpf-toolchain"))
}

fn build_ebpf_object() -> Result<()> {
    let root = env::var("CARGO_MANIFEST_DIR")? + "/../proxy-ebpf";
    let toolchain = env::var(TOOLCHAIN_ENV);
    let toolchain = toolchain.as_deref().map_or(Toolchain::Nightly, Toolchain::Custom);
    let package = Package { name: "snisplit-ebpf", root_dir: &root, ..Package::default() };
    aya_build::build_ebpf([package], toolchain).context("build the BPF programs")
}
