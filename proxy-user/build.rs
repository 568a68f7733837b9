//! Builds the kernel programs and puts the object into `OUT_DIR`.
//!
//! Which compiler and which bpf-linker fit each other is found out once by `cargo xtask setup`, which
//! writes the answer to `$XDG_CACHE_HOME/snisplit/ebpf-toolchain`. It makes the environment of a
//! second run of this script, which hands over to aya-build: `RUSTC_BOOTSTRAP` must reach the kernel
//! build and nothing else. Without the file, a nightly toolchain and a bpf-linker on `PATH` have to
//! do.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

const INNER: &str = "SNISPLIT_BUILD_EBPF";
const TOOLCHAIN: &str = "SNISPLIT_EBPF_TOOLCHAIN";

fn main() -> Result<()> {
    if env::var_os(INNER).is_some() {
        return build();
    }
    println!("cargo:rerun-if-changed=build.rs");
    // Its profiles make the programs too, which aya-build does not look at.
    println!("cargo:rerun-if-changed=../Cargo.toml");
    println!("cargo:rerun-if-env-changed={TOOLCHAIN}");
    let mut again = Command::new(env::current_exe()?);
    again.env(INNER, "1");
    if let Some(answer) = setup_answer() {
        println!("cargo:rerun-if-changed={}", answer.display());
        if let Ok(text) = fs::read_to_string(&answer) {
            again.envs(environment(&text));
        }
    }
    let output = again.stderr(Stdio::inherit()).output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        print!("{stdout}");
        bail!(
            "the kernel programs did not build; `cargo xtask setup` finds or installs the eBPF \
             toolchain (rust-src and a bpf-linker of the same LLVM)"
        );
    }
    stdout.lines().filter(|line| !is_progress(line)).for_each(|line| println!("{line}"));
    Ok(())
}

/// aya-build passes every line of the inner cargo on as a warning; these are none.
fn is_progress(line: &str) -> bool {
    let verb = line.strip_prefix("cargo:warning=").and_then(|text| text.split_whitespace().next());
    let of_cargo = ["Compiling", "Finished", "Downloading", "Downloaded", "Updating", "Locking"];
    verb.is_some_and(|verb| of_cargo.contains(&verb) || verb.starts_with("which(rustup)"))
}

/// Debian's compiler must not meet rustup, which aya-build would prefer.
fn environment(answer: &str) -> Vec<(&'static str, String)> {
    let value = |key: &str| answer.lines().find_map(|line| line.strip_prefix(key));
    let linker = value("linker=").unwrap_or_default();
    let toolchain = value("toolchain=").unwrap_or("nightly");
    let path = match toolchain {
        "debian" => String::from("/usr/sbin:/usr/bin:/sbin:/bin"),
        _ => env::var("PATH").unwrap_or_default(),
    };
    vec![
        ("PATH", format!("{linker}:{path}")),
        ("RUSTC_BOOTSTRAP", String::from("1")),
        (TOOLCHAIN, toolchain.to_owned()),
    ]
}

fn setup_answer() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(cache.join("snisplit/ebpf-toolchain"))
}

fn build() -> Result<()> {
    let root = env::var("CARGO_MANIFEST_DIR")? + "/../proxy-ebpf";
    let toolchain = env::var(TOOLCHAIN);
    let toolchain = toolchain.as_deref().map_or(Toolchain::Nightly, Toolchain::Custom);
    let package = Package { name: "snisplit-ebpf", root_dir: &root, ..Package::default() };
    aya_build::build_ebpf([package], toolchain).context("build the kernel programs")
}
