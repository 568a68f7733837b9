//! House rules that a machine can check.

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

/// Checks every rule.
///
/// # Errors
/// Fails if a file cannot be read or parsed, or if a rule is broken.
pub(crate) fn check() -> Result<()> {
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
    if !findings.is_empty() {
        let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
        bail!("{} house rules are broken:\n{}", lines.len(), lines.join("\n"));
    }
    eprintln!("lint: {} files pass", paths.len());
    Ok(())
}

/// Prints the import graph of the workspace, or of one package, as text or in Graphviz's language.
///
/// # Errors
/// Fails if a file cannot be read or parsed.
pub(crate) fn print_graph(package: Option<&str>, as_dot: bool) -> Result<()> {
    imports::print(package, as_dot)
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
