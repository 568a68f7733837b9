//! Runs the benchmark and writes its results: JSON to `target`, tables to `docs/performance/results.md`, a
//! chart to `docs/performance/results.svg`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::run::root;
use crate::{setup, suite};

mod chart;
mod tables;
mod values;

/// The page with the tables, below the root of the repository.
const PAGE: &str = "docs/performance/results.md";
/// The chart, below the root of the repository.
const CHART: &str = "docs/performance/results.svg";
/// Line in front of the generated part of [`PAGE`].
const BEGIN: &str = "<!-- cargo xtask bench: begin -->\n";
/// Line behind the generated part of [`PAGE`].
const END: &str = "<!-- cargo xtask bench: end -->\n";

/// Measures and writes the page and the chart. With `redraw` it writes them from the last measurement. With
/// `only` it measures that selection and leaves both files alone.
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
    let page = root().join(PAGE);
    let text = fs::read_to_string(&page)?;
    let text = replace_generated(&text, &tables::render(&measured))
        .with_context(|| format!("{PAGE}: the lines {BEGIN:?} and {END:?} are missing"))?;
    fs::write(&page, text)?;
    let chart = root().join(CHART);
    chart::draw(&measured, &chart)?;
    eprintln!("bench: {}, {} and {}", out.display(), page.display(), chart.display());
    Ok(())
}

/// Page with its generated part replaced; `None` if the two lines around it are missing.
fn replace_generated(page: &str, tables: &str) -> Option<String> {
    let (head, rest) = page.split_once(BEGIN)?;
    let (_generated, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}{tables}\n{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, replace_generated};

    #[test]
    fn text_around_the_generated_part_stays() {
        let page = format!("title\n{BEGIN}old\n{END}notes\n");
        let page = replace_generated(&page, "\ntables\n").unwrap();
        assert_eq!(page, format!("title\n{BEGIN}\ntables\n\n{END}notes\n"));
        assert_eq!(replace_generated("title\n", "tables"), None);
    }
}
