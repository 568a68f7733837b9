//! Builds the agent, then runs things of the `tests` crate as root in namespaces of their own.

use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::run::{as_root, cargo, loud, quiet, root, words};
use crate::setup;

/// Namespaces for mounts, network and processes: whatever a run leaves dies with them. `/run/netns`
/// and `/run/snisplit` are their own, so that names cannot meet the host's.
const FRESH: &str = "mkdir -p /run/netns /run/snisplit && mount -t tmpfs sp-netns /run/netns && \
    mount -t tmpfs sp-run /run/snisplit && mount -t bpf bpf /sys/fs/bpf && ip link set lo up && \
    exec \"$@\"";

/// Test files that name the engine of every agent they start, or start none.
const ENGINES_NAMED: [&str; 22] = [
    "auto",
    "bpftool",
    "cli",
    "engines",
    "handover",
    "leaks",
    "retransmissions",
    "packet",
    "packet_capture",
    "packet_reclaim",
    "packet_hooks",
    "packet_pins",
    "packet_dead_peer",
    "packet_checksum",
    "packet_translate",
    "packet_tls",
    "packet_vlan",
    "packet_wire",
    "packet_xdp",
    "backpressure",
    "stress",
    "top",
];

/// Most tests spend their time waiting.
pub(crate) const AT_ONCE: &str = "--test-threads=3";

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
    for (name, mut command) in of_root((&agent, &peers), filter, engine)? {
        eprintln!("+ {name} (as root, in fresh namespaces)");
        total.run(&mut command)?;
    }
    total.close()
}

/// The programs of the root suite, those that have such tests, and what to call each.
pub(crate) fn of_root(
    (agent, peers): (&Path, &Path),
    filter: Option<&str>,
    engine: Option<&str>,
) -> Result<Vec<(String, Command)>> {
    let _none_before = std::fs::remove_file(skips());
    let executables = executables(&["--tests"])?;
    let passes =
        if engine.is_some() { &[engine][..] } else { &[None, Some("sockmap"), Some("packet")] };
    let mut commands = Vec::new();
    for (pass, engine) in passes.iter().enumerate() {
        for executable in executables.iter().filter(|path| pass == 0 || !names_engines(path)) {
            let tests = filter.filter(|filter| !file(executable).contains(filter));
            let list = ["--list", "--format", "terse"];
            if quiet(Command::new(executable).args(tests).args(list))?.is_empty() {
                continue;
            }
            let mut command = fresh(agent, peers);
            command.arg(format!("SNISPLIT_SKIPS={}", skips().display()));
            command.args(engine.map(|name| format!("SNISPLIT_TEST_ENGINE={name}"))).args(INSIDE);
            command.arg(executable).args(tests).arg(AT_ONCE);
            let with = engine.map(|name| format!(", engine {name}")).unwrap_or_default();
            commands.push((format!("{}{with}", file(executable)), command));
        }
    }
    Ok(commands)
}

/// What tests write down that are skipped.
fn skips() -> PathBuf {
    root().join("target/skipped-tests")
}

fn names_engines(executable: &Path) -> bool {
    ENGINES_NAMED.contains(&file(executable))
}

/// `…/deps/stress-0123456789abcdef` is of `stress`.
fn file(executable: &Path) -> &str {
    let name = executable.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.rsplit_once('-').map_or(name, |(file, _hash)| file)
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

pub(crate) fn build_agent(profile: &str) -> Result<PathBuf> {
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
pub(crate) struct Total {
    passed: usize,
    failed: usize,
    /// Programs that came to their end.
    pub(crate) closed: usize,
}

impl Total {
    /// Runs libtest programs, shows what they print and adds up how they close.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<()> {
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| words(command))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let before = self.closed;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some((passed, failed)) = closing(&line) {
                self.closed += 1;
                self.passed += passed;
                self.failed += failed;
            }
        }
        let status = child.wait()?;
        if !status.success() && (self.closed == before || self.failed == 0) {
            bail!("{} failed: {status}", words(command));
        }
        Ok(())
    }

    /// Says what it comes to, and which tests were skipped.
    pub(crate) fn close(&self) -> Result<()> {
        let skipped = match std::fs::read_to_string(skips()) {
            Ok(text) => {
                text.lines().for_each(|line| eprintln!("SKIPPED {line}"));
                text.lines().count()
            }
            Err(_) => 0,
        };
        let passed = self.passed.saturating_sub(skipped);
        println!("snisplit: {passed} passed, {} failed, {skipped} skipped", self.failed);
        ensure!(self.failed == 0, "tests failed");
        ensure!(passed > 0, "no test ran");
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
