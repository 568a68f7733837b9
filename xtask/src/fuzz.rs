//! Fuzzing with cargo-fuzz, seeded with what real clients say.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::{cache, cargo, loud, root};

const VERSION: &str = "0.13.2";

pub(crate) fn run(target: &str, seconds: u64) -> Result<()> {
    let tool = cache()?.join(format!("cargo-fuzz-{VERSION}"));
    if !tool.join("bin/cargo-fuzz").exists() {
        let install = ["install", "--quiet", "--locked", "cargo-fuzz", "--version", VERSION];
        loud(cargo().args(install).arg("--root").arg(&tool))?;
    }
    seed(target)?;
    let folder = root().join("tests/fuzz");
    let time = format!("-max_total_time={seconds}");
    // Stable compilers know the sanitizer's flag too, behind RUSTC_BOOTSTRAP.
    loud(
        Command::new(tool.join("bin/cargo-fuzz"))
            .args(["fuzz", "run", target, "--fuzz-dir", ".", "--", "-max_len=70000", &time])
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(folder),
    )
}

/// The first four bytes of a `client_hello` input say where to cut it.
fn seed(target: &str) -> Result<()> {
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
