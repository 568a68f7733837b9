//! Counts of passed, failed and skipped tests.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::command_text;

/// What the test programs of a run add up to.
pub(crate) struct SuiteTotals {
    passed: usize,
    failed: usize,
    /// Programs that printed their result.
    pub(crate) finished_programs: usize,
    /// File with one line for each skipped test.
    skips: PathBuf,
}

impl SuiteTotals {
    /// Totals of a new run, which empties the file of skipped tests.
    pub(crate) fn new(skips: &Path) -> Self {
        let _absent = fs::remove_file(skips);
        Self { passed: 0, failed: 0, finished_programs: 0, skips: skips.to_owned() }
    }

    /// Runs libtest programs, prints their output and adds up their results.
    ///
    /// # Errors
    /// Fails if the command fails for another reason than a failed test.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<()> {
        let mut child =
            command.stdout(Stdio::piped()).spawn().with_context(|| command_text(command))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let finished_before = self.finished_programs;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some(counts) = Counts::parse(&line) {
                self.finished_programs += 1;
                self.passed += counts.passed;
                self.failed += counts.failed;
            }
        }
        let status = child.wait()?;
        if !status.success() && (self.finished_programs == finished_before || self.failed == 0) {
            bail!("{} failed: {status}", command_text(command));
        }
        Ok(())
    }

    /// Prints which tests were skipped, what was not checked, and as the last line the totals.
    ///
    /// # Errors
    /// Fails if a test failed, or if none passed: a run of skipped tests only has failed.
    pub(crate) fn close(&self, unchecked: &[String]) -> Result<()> {
        let skipped = fs::read_to_string(&self.skips).unwrap_or_default();
        skipped.lines().for_each(|line| eprintln!("SKIPPED {line}"));
        unchecked.iter().for_each(|line| eprintln!("NOT CHECKED {line}"));
        let skipped_tests = skipped.lines().count();
        let passed = self.passed.saturating_sub(skipped_tests);
        let skipped = skipped_tests + unchecked.len();
        println!("snisplit: {passed} passed, {} failed, {skipped} skipped", self.failed);
        ensure!(self.failed == 0, "tests failed");
        ensure!(passed > 0, "no test ran");
        Ok(())
    }
}

/// The result line of a libtest program.
#[derive(Debug, PartialEq)]
struct Counts {
    passed: usize,
    failed: usize,
}

impl Counts {
    /// Parses `test result: ok. 5 passed; 0 failed; …`.
    fn parse(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let mut numbers = counts.split("; ").map(|part| part.split(' ').next()?.parse().ok());
        Some(Self { passed: numbers.next()??, failed: numbers.next()?? })
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn a_result_line_is_parsed() {
        let line = "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Counts::parse(line), Some(Counts { passed: 7, failed: 2 }));
        assert_eq!(Counts::parse("running 5 tests"), None);
    }
}
