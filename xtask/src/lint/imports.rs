//! Imports between the files of each crate: no circles, and the layers of the agent.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::finding::{Finding, Rule};
use super::graph::{Graph, Import};
use super::modules;
use crate::run::{capture_stdout, cargo, root};

/// Source of the crate that [`LAYERS`] rules.
const AGENT: &str = "proxy-user/src/lib.rs";

/// What a module of the agent may import of the agent's other modules.
enum MayImport {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

use MayImport::{AllBut, Only};

/// Top-level modules of the agent, as in the code map of ARCHITECTURE.md.
const LAYERS: [(&str, MayImport); 18] = [
    ("acme", Only(&["certs", "config", "dns"])),
    ("bpf", Only(&["sys"])),
    ("certs", Only(&["config", "file_stamp"])),
    ("cli", Only(&["config"])),
    ("commands", AllBut(&["daemon"])),
    ("config", Only(&["engine", "telemetry"])),
    ("daemon", AllBut(&[])),
    ("dns", Only(&[])),
    ("downstream", Only(&["config", "engine", "sys", "telemetry"])),
    ("engine", Only(&["bpf", "sys"])),
    ("file_stamp", Only(&[])),
    ("instance", Only(&["bpf"])),
    ("net", Only(&["config", "sys"])),
    ("reference", Only(&["cli", "config"])),
    ("session", Only(&["certs", "config", "downstream", "engine", "sys", "telemetry", "upstream"])),
    ("sys", Only(&[])),
    ("telemetry", Only(&["engine"])),
    ("upstream", Only(&["config", "dns", "engine", "sys", "telemetry"])),
];

/// A library or a binary of the workspace.
struct Target {
    package: String,
    name: String,
    /// Its root file, relative to the workspace.
    source: PathBuf,
}

/// Checks the layers of the agent, and every crate for circles.
pub(super) fn check(findings: &mut Vec<Finding>) -> Result<()> {
    for target in targets()? {
        let graph = graph_of(&target)?;
        circles(&graph, findings);
        if target.source.as_os_str() == AGENT {
            layers(&graph, findings);
        }
    }
    Ok(())
}

/// Prints the graph of each crate, or of the crates of one package.
pub(super) fn print(package: Option<&str>, as_dot: bool) -> Result<()> {
    for target in targets()? {
        if package.is_some_and(|package| package != target.package) {
            continue;
        }
        let graph = graph_of(&target)?;
        let title = format!("{} ({})", target.name, target.source.display());
        print!("{}", if as_dot { graph.to_dot(&title) } else { graph.to_text(&title) });
    }
    Ok(())
}

fn graph_of(target: &Target) -> Result<Graph> {
    let top = root();
    modules::import_graph(&target.source, &|path| fs::read_to_string(top.join(path)).ok())
}

/// Every library and binary that cargo knows. A test file is a crate of its own with one file.
fn targets() -> Result<Vec<Target>> {
    let metadata = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let metadata: Value = serde_json::from_str(&capture_stdout(cargo().args(metadata))?)?;
    let top = root();
    let mut targets = Vec::new();
    for package in metadata["packages"].as_array().context("cargo lists no packages")? {
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_crate = ["lib", "bin"].iter().any(|kind| target["kind"][0] == **kind);
            let source = PathBuf::from(target["src_path"].as_str().unwrap_or_default());
            if let (true, Ok(source)) = (is_crate, source.strip_prefix(&top)) {
                targets.push(Target {
                    package: package["name"].as_str().unwrap_or_default().to_owned(),
                    name: target["name"].as_str().unwrap_or_default().to_owned(),
                    source: source.to_owned(),
                });
            }
        }
    }
    Ok(targets)
}

fn circles(graph: &Graph, findings: &mut Vec<Finding>) {
    for circle in graph.circles() {
        let within = |import: &Import| {
            circle.contains(&import.from.as_str()) && circle.contains(&import.to.as_str())
        };
        let imports: Vec<_> = graph.imports().filter(within).collect();
        let lines = imports.iter().map(|import| {
            format!(
                "\n    {} imports {}::{} ({})",
                import.from, import.to, import.item, import.place
            )
        });
        let message = format!(
            "{} files import each other: {}{}",
            circle.len(),
            circle.join(", "),
            lines.collect::<String>()
        );
        let place = imports.first().map(|import| import.place.clone()).unwrap_or_default();
        findings.push(Finding::at_place(Rule::ImportCircle, place, message));
    }
}

fn layers(graph: &Graph, findings: &mut Vec<Finding>) {
    for import in graph.imports() {
        let from = top_level(&import.from);
        let to = top_level(&import.to);
        if from == to || from == ROOT {
            continue;
        }
        let mut rules = LAYERS.iter().filter(|(module, _)| *module == from);
        let is_allowed = |(_, rule): &(&str, MayImport)| match rule {
            Only(modules) => modules.contains(&to),
            AllBut(modules) => !modules.contains(&to) && to != ROOT,
        };
        if !rules.any(is_allowed) {
            let message = format!("`{from}` must not import `{}::{}`", import.to, import.item);
            findings.push(Finding::at_place(Rule::ImportLayer, import.place, message));
        }
    }
}

/// The root file of a crate.
const ROOT: &str = "crate";

/// `engine` for `crate::engine::packet`.
fn top_level(module: &str) -> &str {
    module.split("::").nth(1).unwrap_or(ROOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_findings(from: &str, to: &str) -> usize {
        let mut graph = Graph::new([from, to].map(str::to_owned).into_iter());
        let place = "a.rs:1".to_owned();
        graph.add(Import { from: from.into(), to: to.into(), item: "Item".into(), place });
        let mut findings = Vec::new();
        layers(&graph, &mut findings);
        findings.len()
    }

    #[test]
    fn a_module_imports_only_what_its_layer_allows() {
        assert_eq!(count_findings("crate::engine::packet", "crate::bpf"), 0);
        assert_eq!(count_findings("crate::engine::packet", "crate::engine"), 0);
        assert_eq!(count_findings("crate::engine", "crate::session"), 1);
        assert_eq!(count_findings("crate::commands::check", "crate::session"), 0);
        assert_eq!(count_findings("crate::commands::check", "crate::daemon"), 1);
        assert_eq!(count_findings("crate::telemetry", "crate"), 1);
        assert_eq!(count_findings("crate", "crate::daemon"), 0);
    }

    #[test]
    fn a_module_without_a_layer_imports_nothing() {
        assert_eq!(count_findings("crate::unheard_of", "crate::sys"), 1);
    }
}
