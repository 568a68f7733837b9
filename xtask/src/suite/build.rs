//! Builds the agent, the tests, and the programs of the `tests` crate.
//!
//! Every development build selects the whole workspace, so that cargo compiles each dependency with
//! one set of features, and once.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::run::{cargo, command_text, root, run_echoed};

/// The BPF programs need a target of their own: the build script of the agent compiles them.
const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "snisplit-ebpf"];

/// A test program.
pub(crate) struct Executable {
    pub(crate) path: PathBuf,
    /// Name of the crate: for a test file, that of the file.
    pub(crate) name: String,
    /// Root file of the crate.
    pub(crate) source: PathBuf,
    /// Folder of the package.
    folder: PathBuf,
}

impl Executable {
    /// Root file, relative to the workspace.
    pub(super) fn title(&self) -> String {
        self.source.strip_prefix(root()).unwrap_or(&self.source).display().to_string()
    }

    /// Runs it as `cargo test` does.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

/// What a build of the workspace made.
pub(super) struct Built {
    pub(super) agent: PathBuf,
    pub(super) unit_tests: Vec<Executable>,
    pub(super) root_tests: Vec<Executable>,
}

/// The agent and a program that drives it.
pub(super) struct Parts {
    pub(super) agent: PathBuf,
    pub(super) binary: PathBuf,
}

/// Builds the agent, all unit tests and the root suite.
pub(super) fn workspace() -> Result<Built> {
    built(&artifacts(&["--bins", "--tests"])?)
}

/// Builds the agent and one file of the root suite.
pub(super) fn one(test_file: &str) -> Result<Built> {
    built(&artifacts(&["--bin", "snisplit", "--test", test_file])?)
}

/// Builds the agent and a binary of the `tests` crate; for `bench`, the agent as it is released.
pub(super) fn program(name: &str) -> Result<Parts> {
    if name != "bench" {
        let artifacts = artifacts(&["--bin", "snisplit", "--bin", name])?;
        let [agent, binary] =
            ["snisplit", name].map(|name| artifacts.iter().find_map(|one| one.binary(name)));
        let agent = agent.context("cargo built no agent")?;
        return Ok(Parts { agent, binary: binary.context("cargo built no program")? });
    }
    let agent = release_agent()?;
    let artifacts = artifacts(&["--bin", name])?;
    let binary = artifacts.iter().find_map(|one| one.binary(name));
    Ok(Parts { agent, binary: binary.context("cargo built no program")? })
}

/// Builds the agent as users build it.
///
/// # Errors
/// Fails if it does not build.
pub(crate) fn release_agent() -> Result<PathBuf> {
    run_echoed(cargo().args(["build", "--package", "snisplit", "--release"]))?;
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release/snisplit"))
}

fn built(artifacts: &[Artifact]) -> Result<Built> {
    let root_package = root().join("tests");
    let mut unit_tests = Vec::new();
    let mut root_tests = Vec::new();
    for artifact in artifacts.iter().filter(|artifact| artifact.is_test) {
        if artifact.folder != root_package {
            unit_tests.push(artifact.executable());
        } else if artifact.kind == "test" {
            root_tests.push(artifact.executable());
        }
    }
    unit_tests.sort_by(|one, other| one.source.cmp(&other.source));
    root_tests.sort_by(|one, other| one.name.cmp(&other.name));
    let agent = artifacts.iter().find_map(|artifact| artifact.binary("snisplit"));
    Ok(Built { agent: agent.context("cargo built no agent")?, unit_tests, root_tests })
}

/// An executable that cargo reports.
struct Artifact {
    path: PathBuf,
    name: String,
    source: PathBuf,
    /// Folder of its package.
    folder: PathBuf,
    /// `bin`, `lib` or `test`.
    kind: String,
    is_test: bool,
}

impl Artifact {
    fn parse(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        let target = &message["target"];
        let manifest = Path::new(message["manifest_path"].as_str()?);
        Some(Self {
            path: message["executable"].as_str()?.into(),
            name: target["name"].as_str()?.to_owned(),
            source: target["src_path"].as_str()?.into(),
            folder: manifest.parent()?.to_owned(),
            kind: target["kind"][0].as_str()?.to_owned(),
            is_test: message["profile"]["test"].as_bool()?,
        })
    }

    fn binary(&self, name: &str) -> Option<PathBuf> {
        (!self.is_test && self.kind == "bin" && self.name == name).then(|| self.path.clone())
    }

    fn executable(&self) -> Executable {
        Executable {
            path: self.path.clone(),
            name: self.name.clone(),
            source: self.source.clone(),
            folder: self.folder.clone(),
        }
    }
}

/// Builds these targets of the workspace as the user and lists the executables.
fn artifacts(targets: &[&str]) -> Result<Vec<Artifact>> {
    let mut command = cargo();
    command.arg("build").args(WORKSPACE).args(targets);
    eprintln!("+ {}", command_text(&command));
    command.args(["--message-format", "json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} failed", command_text(&command));
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(Artifact::parse).collect())
}
