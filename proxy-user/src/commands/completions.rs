//! `snisplit completions` and `snisplit man`: files for shells and man(1).

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::reference::man_pages;

/// Prints the completions of a shell.
///
/// # Errors
///
/// Standard output cannot be written.
pub fn print_completions(shell: Shell) -> Result<()> {
    // `generate` panics if it cannot write, as to a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "snisplit", &mut script);
    io::stdout().write_all(&script).context("standard output")
}

/// Writes all man pages to a folder, such as `/usr/local/share/man/man1`, which is made if it is missing.
///
/// # Errors
///
/// The folder or a file in it cannot be written.
pub fn write_man_pages(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for (name, page) in man_pages()? {
        let path = folder.join(name);
        fs::write(&path, page).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
