//! Every check that a commit must pass.

use anyhow::Result;

use crate::run::{capture_stdout, cargo, run_echoed};
use crate::suite::{self, Selection};
use crate::{dependencies, lint, setup};

const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "snisplit-ebpf"];

/// Runs the checks in order of their cost, and stops at the first that fails. With `is_static`, leaves
/// out the tests.
///
/// # Errors
/// Fails if a check fails.
pub(crate) fn run(is_static: bool) -> Result<()> {
    let mut unchecked = Vec::new();
    if is_installed("fmt", &mut unchecked) {
        run_echoed(cargo().args(["fmt", "--check"]))?;
    }
    lint::check()?;
    let peers = if is_static {
        setup::toolchain()?;
        setup::peers()?
    } else {
        setup::all()?
    };
    if let Some(why) = dependencies::check()? {
        eprintln!("ci: not checked: {why}");
        unchecked.push(why);
    }
    if is_installed("clippy", &mut unchecked) {
        let clippy = cargo_on_workspace("clippy", &["--all-targets", "--", "-D", "warnings"]);
        run_echoed(&mut { clippy })?;
    }
    let mut doc = cargo_on_workspace("doc", &["--no-deps", "--document-private-items"]);
    run_echoed(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    if is_static {
        unchecked.iter().for_each(|line| eprintln!("NOT CHECKED {line}"));
        eprintln!("ci: all checks but the tests passed");
        return Ok(());
    }
    suite::test(Selection { filter: None, engine: None }, &peers, &unchecked)
}

fn cargo_on_workspace(verb: &str, args: &[&str]) -> std::process::Command {
    let mut command = cargo();
    command.arg(verb).args(WORKSPACE).args(args);
    command
}

/// Whether the toolchain has a component of cargo. rustup's minimal profile leaves both out.
fn is_installed(verb: &str, unchecked: &mut Vec<String>) -> bool {
    let found = capture_stdout(cargo().args([verb, "--version"])).is_ok();
    if !found {
        let why = format!("{verb}: the toolchain has no cargo {verb}");
        eprintln!("ci: not checked: {why}");
        unchecked.push(why);
    }
    found
}
