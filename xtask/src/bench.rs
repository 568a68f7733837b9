//! Runs the benchmark and writes what it found: JSON to `target`, tables to `docs/benchmarks.md`, a chart
//! to `docs/benchmarks.svg`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::run::root;
use crate::{setup, suite};

mod chart;
mod tables;
mod values;

/// Everything below this line of the page is written anew.
const MARK: &str = "<!-- cargo xtask bench -->\n";
/// Whom the ratios are to.
const REFERENCE: &str = "haproxy";

/// Measures, or with `redraw` draws what was measured last. What only some candidates did is no table.
pub(crate) fn run(
    rounds: usize,
    seconds: u64,
    redraw: bool,
    only: &[String],
    out: &Path,
) -> Result<()> {
    if !redraw {
        let args = [rounds.to_string(), seconds.to_string(), out.display().to_string()];
        suite::run_program("bench", &[&args, only].concat(), &setup::all()?)?;
    }
    if !only.is_empty() {
        return Ok(());
    }
    let text = fs::read_to_string(out).with_context(|| format!("{}", out.display()))?;
    let measured: Value = serde_json::from_str(&text)?;
    let page = root().join("docs/benchmarks.md");
    let text = fs::read_to_string(&page)?;
    let (head, _old) = text.split_once(MARK).context("docs/benchmarks.md has lost its mark")?;
    fs::write(&page, format!("{head}{MARK}{}", tables::all(&measured)))?;
    let picture = root().join("docs/benchmarks.svg");
    chart::draw(&measured, &picture)?;
    eprintln!("bench: {}, {} and {}", out.display(), page.display(), picture.display());
    Ok(())
}
