//! Fuzzing with cargo-fuzz, seeded with recorded hellos of real clients.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::{cache, cargo, root, run_echoed};

const VERSION: &str = "0.13.2";

/// Runs a fuzz target for a time.
///
/// # Errors
/// Fails if cargo-fuzz cannot be built, or if it finds a crash.
pub(crate) fn run(target: &str, seconds: u64) -> Result<()> {
    let tool = cache()?.join(format!("cargo-fuzz-{VERSION}"));
    if !tool.join("bin/cargo-fuzz").exists() {
        let install = ["install", "--quiet", "--locked", "cargo-fuzz", "--version", VERSION];
        run_echoed(cargo().args(install).arg("--root").arg(&tool))?;
    }
    write_corpus(target)?;
    let folder = root().join("tests/fuzz");
    let time = format!("-max_total_time={seconds}");
    // RUSTC_BOOTSTRAP lets a stable compiler accept the sanitizer flag.
    run_echoed(
        Command::new(tool.join("bin/cargo-fuzz"))
            .args(["fuzz", "run", target, "--fuzz-dir", ".", "--", "-max_len=70000", &time])
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(folder),
    )
}

/// Writes the seed corpus. The target `client_hello` cuts an input at places that its first four bytes
/// name.
fn write_corpus(target: &str) -> Result<()> {
    let corpus = root().join("tests/fuzz/corpus").join(target);
    fs::create_dir_all(&corpus)?;
    if target == "routes" {
        let table = "x.a.test\n* b.test\n*.a.test a.test\nx.a.test\n";
        return Ok(fs::write(corpus.join("seed"), table)?);
    }
    for entry in fs::read_dir(root().join("tests/client_hellos"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            let name = path.file_name().context("a file has a name")?;
            let input = [&[0x20, 0x40, 0x80, 0xc0], &fs::read(&path)?[..]].concat();
            fs::write(corpus.join(name), input)?;
        }
    }
    Ok(())
}
