//! Builds the agent, then runs things of the `tests` crate as root in namespaces of their own.

use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::run::{as_root, cargo, loud, root, words};
use crate::setup;

/// Namespaces for mounts, network and processes: whatever a run leaves dies with them. `/run/netns`
/// and `/run/snisplit` are their own, so that names cannot meet the host's.
const FRESH: &str = "mkdir -p /run/netns /run/snisplit && mount -t tmpfs sp-netns /run/netns && \
    mount -t tmpfs sp-run /run/snisplit && mount -t bpf bpf /sys/fs/bpf && ip link set lo up && \
    exec \"$@\"";

/// Test files that name the engine of every agent they start, or start none.
const ENGINES_NAMED: [&str; 17] = [
    "auto",
    "bpftool",
    "cli",
    "engines",
    "leaks",
    "overlap",
    "packet",
    "packet_capture",
    "packet_hooks",
    "packet_pins",
    "packet_table",
    "packet_tls",
    "packet_wire",
    "packet_xdp",
    "slow",
    "storm",
    "top",
];

/// Unit tests as the user, then the root suite: all of it with the engine asked for, else with the
/// default and then, where that is another test, with sockmap and with packet. Skips are counted; a run
/// of skips only has failed.
pub(crate) fn test(filter: Option<&str>, engine: Option<&str>) -> Result<()> {
    let peers = setup::all()?;
    let mut total = Total::default();
    let unit = ["test", "--workspace", "--exclude", "snisplit-ebpf", "--exclude", "snisplit-tests"];
    let mut units = cargo();
    eprintln!("+ {}", words(units.args(unit).args(filter)));
    total.run(&mut units)?;
    let agent = build_agent("dev")?;
    let skips = root().join("target/skipped-tests");
    let _none_before = std::fs::remove_file(&skips);
    let executables = executables(&["--tests"])?;
    let passes =
        if engine.is_some() { &[engine][..] } else { &[None, Some("sockmap"), Some("packet")] };
    for (pass, engine) in passes.iter().enumerate() {
        for executable in executables.iter().filter(|path| pass == 0 || !names_engines(path)) {
            let mut command = fresh(&agent, &peers);
            command.arg(format!("SNISPLIT_SKIPS={}", skips.display()));
            command.args(engine.map(|name| format!("SNISPLIT_TEST_ENGINE={name}"))).args(INSIDE);
            command.arg(executable).args(filter).args(["--test-threads", "3"]);
            let with = engine.map(|name| format!(", engine {name}")).unwrap_or_default();
            eprintln!("+ {} (as root, in fresh namespaces{with})", executable.display());
            total.run(&mut command)?;
        }
    }
    total.skipped = match std::fs::read_to_string(&skips) {
        Ok(text) => {
            text.lines().for_each(|line| eprintln!("SKIPPED {line}"));
            text.lines().count()
        }
        Err(_) => 0,
    };
    let passed = total.passed.saturating_sub(total.skipped);
    println!("snisplit: {passed} passed, {} failed, {} skipped", total.failed, total.skipped);
    ensure!(total.failed == 0, "tests failed");
    ensure!(passed > 0, "no test ran");
    Ok(())
}

/// `…/deps/storm-0123456789abcdef` is of `storm`.
fn names_engines(executable: &Path) -> bool {
    let file = executable.file_name().unwrap_or_default().to_string_lossy();
    file.rsplit_once('-').is_some_and(|(test, _hash)| ENGINES_NAMED.contains(&test))
}

/// Runs a program of the `tests` crate in fresh namespaces, on our standard streams.
pub(crate) fn in_lab(program: &str, args: &[String]) -> Result<()> {
    let peers = setup::all()?;
    let profile = if program == "bench" { "release" } else { "dev" };
    let agent = build_agent(profile)?;
    let bin = executables(&["--bin", program])?.pop().context("the program was not built")?;
    eprintln!("+ {} (as root, in fresh namespaces)", bin.display());
    let status = fresh(&agent, &peers).args(INSIDE).arg(bin).args(args).status()?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}

fn build_agent(profile: &str) -> Result<PathBuf> {
    loud(cargo().args(["build", "--package", "snisplit", "--profile", profile]))?;
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join(if profile == "dev" { "debug" } else { profile }).join("snisplit"))
}

/// Builds a part of the `tests` crate as the user and says where its executables are.
fn executables(which: &[&str]) -> Result<Vec<PathBuf>> {
    let verb: &[&str] = if which == ["--tests"] { &["test", "--no-run"] } else { &["build"] };
    let mut command = cargo();
    command.args(verb).args([
        "--package",
        "snisplit-tests",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let output = command.args(which).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} failed", words(&command));
    let path = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let wanted =
            message["target"]["kind"][0] == which[0].trim_start_matches('-').trim_end_matches('s');
        message["executable"].as_str().filter(|_| wanted).map(PathBuf::from)
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(path).collect())
}

/// `env` as root, up to the variables; [`INSIDE`] and a command come behind it.
fn fresh(agent: &Path, peers: &Path) -> Command {
    let mut command = as_root("env");
    command.arg(format!("SNISPLIT_BIN={}", agent.display()));
    command.arg(format!("SNISPLIT_PEERS={}", peers.display()));
    command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

const INSIDE: [&str; 11] = [
    "unshare",
    "--mount",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    FRESH,
    "snisplit",
];

#[derive(Default)]
struct Total {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Total {
    /// Runs libtest programs, shows what they print and adds up how they close.
    fn run(&mut self, command: &mut Command) -> Result<()> {
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| words(command))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut closed = false;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some((passed, failed)) = closing(&line) {
                closed = true;
                self.passed += passed;
                self.failed += failed;
            }
        }
        let status = child.wait()?;
        if !status.success() && (!closed || self.failed == 0) {
            bail!("{} failed: {status}", words(command));
        }
        Ok(())
    }
}

/// `test result: ok. 5 passed; 0 failed; …`
fn closing(line: &str) -> Option<(usize, usize)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = counts.split("; ").map(|part| part.split(' ').next()?.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    #[test]
    fn closing_lines_are_read() {
        let line = "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(super::closing(line), Some((7, 2)));
        assert_eq!(super::closing("running 5 tests"), None);
    }
}
