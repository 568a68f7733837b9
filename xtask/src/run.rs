//! Commands: printed before they run, and named when they fail.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The cargo that runs this program, in the root of the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A command that runs as root: as it is, or with sudo.
pub(crate) fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

pub(crate) fn is_root() -> bool {
    capture_stdout(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

/// Prints the command and runs it with the standard streams of this process.
///
/// # Errors
/// Fails if the command does.
pub(crate) fn run_echoed(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", command_text(command));
    let status = command.status().with_context(|| command_text(command))?;
    if !status.success() {
        bail!("{} failed: {status}", command_text(command));
    }
    Ok(())
}

/// Runs the command and returns its standard output.
///
/// # Errors
/// Fails if the command does; the error has its standard error.
pub(crate) fn capture_stdout(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| command_text(command))?;
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            command_text(command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as a person would type it, without quotes.
pub(crate) fn command_text(command: &Command) -> String {
    let all = std::iter::once(command.get_program()).chain(command.get_args());
    all.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap_or_else(|_| ".".into())
}

/// The folder of what `setup` makes for all clones of the repository.
///
/// # Errors
/// Fails if the user has no home folder.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("snisplit"))
}
