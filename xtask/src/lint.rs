//! House rules that a machine can check.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::run::root;

mod finding;
mod functions;
mod graph;
mod imports;
mod modules;
mod paths;
mod retired;
mod text;

use finding::{Finding, Rule};

/// Rules that are reported and do not fail the check.
///
/// Empty this list when the restructuring is merged: every rule is then enforced.
const REPORT_ONLY: &[Rule] = &[Rule::ImportCircle, Rule::RetiredWord, Rule::TupleParameter];

/// Checks every rule. Findings of [`REPORT_ONLY`] rules are listed if `report` is set, else counted.
///
/// # Errors
/// Fails if a file cannot be read or parsed, or if an enforced rule is broken.
pub(crate) fn check(report: bool) -> Result<()> {
    let paths = files_below(&root(), "rs")?;
    let mut findings = Vec::new();
    for path in &paths {
        let text = read(path)?;
        let syntax = syn::parse_file(&text).with_context(|| path.display().to_string())?;
        text::check(path, &text, &mut findings);
        functions::check(path, &syntax, &mut findings);
        retired::check_code(path, &text, &mut findings)?;
    }
    for path in files_below(&root(), "md")? {
        retired::check_page(&path, &read(&path)?, &mut findings);
    }
    imports::check(&mut findings)?;
    let (reported, enforced): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|finding| REPORT_ONLY.contains(&finding.rule));
    show_reported(&reported, report);
    if !enforced.is_empty() {
        let lines: Vec<_> = enforced.iter().map(ToString::to_string).collect();
        bail!("{} house rules are broken:\n{}", lines.len(), lines.join("\n"));
    }
    eprintln!("lint: {} files pass the enforced rules", paths.len());
    Ok(())
}

/// Prints the import graph of the workspace, or of one package, as text or in Graphviz's language.
///
/// # Errors
/// Fails if a file cannot be read or parsed.
pub(crate) fn print_graph(package: Option<&str>, as_dot: bool) -> Result<()> {
    imports::print(package, as_dot)
}

fn show_reported(findings: &[Finding], in_full: bool) {
    if in_full {
        findings.iter().for_each(|finding| eprintln!("{finding}"));
    }
    let mut counts = BTreeMap::new();
    for finding in findings {
        *counts.entry(finding.rule).or_insert(0) += 1;
    }
    for (rule, count) in counts {
        eprintln!("lint: {count} findings of \"{rule}\", not enforced (cargo xtask lint --report)");
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.display().to_string())
}

/// Files with this extension, relative to `top`. Leaves out `target` and hidden folders.
fn files_below(top: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(top.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name();
            let path = folder.join(&name);
            let is_source = name != "target" && !name.to_string_lossy().starts_with('.');
            if entry.file_type()?.is_dir() && is_source {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
