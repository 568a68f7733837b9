//! The tests: unit tests as the user, the root suite as root in namespaces of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::{capture_stdout, cargo, root};

mod build;
mod namespace;
mod totals;

pub(crate) use build::release_agent;
use build::{Executable, Parts};
pub(crate) use namespace::Tools;
pub(crate) use totals::SuiteTotals;

/// Most tests spend their time waiting, so more of them run at once than there are cores.
pub(crate) const TEST_THREADS: &str = "--test-threads=3";

/// Line by which a test file declares that its tests name the engine of every agent that they start,
/// or start none.
const NAMES_ENGINES: &str = "//@ engines: named";

/// Engines of the passes over the root suite when no engine is asked for; `None` is the default of the
/// agent. Files that name their engines are in the first pass only.
const PASSES: [Option<&str>; 3] = [None, Some("sockmap"), Some("packet")];

/// Which tests to run.
#[derive(Clone, Copy)]
pub(crate) struct Selection<'a> {
    /// Part of the name of a test or of its file.
    pub(crate) filter: Option<&'a str>,
    /// The engine of agents whose test names none.
    pub(crate) engine: Option<&'a str>,
}

/// A test file of the root suite, or one test in it.
pub(crate) struct TestPath {
    file: String,
    test: Option<String>,
}

impl TestPath {
    /// Parses `FILE` or `FILE::TEST`. The file may have its extension and its folder.
    pub(crate) fn parse(text: &str) -> Self {
        let (file, test) = match text.split_once("::") {
            Some((file, test)) => (file, Some(test.to_owned())),
            None => (text, None),
        };
        let file = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".rs").to_owned();
        Self { file, test }
    }
}

/// Runs the unit tests, then the root suite: with one engine if one is asked for, else in [`PASSES`].
/// `unchecked` is what could not be checked before; the closing line counts it as skipped.
///
/// # Errors
/// Fails if something does not build, if a test fails, or if no test runs.
pub(crate) fn test(selection: Selection, peers: &Path, unchecked: &[String]) -> Result<()> {
    let built = build::workspace()?;
    let mut totals = SuiteTotals::new(&skips());
    for unit in &built.unit_tests {
        eprintln!("+ unit tests of {}", unit.title());
        totals.run(unit.command().args(selection.filter))?;
    }
    let doc = ["test", "--quiet", "--doc", "--workspace", "--exclude", "snisplit-ebpf", "--"];
    eprintln!("+ cargo {}", doc.join(" "));
    totals.run(cargo().args(doc).args(selection.filter))?;
    let tools = Tools { agent: &built.agent, peers };
    for (title, mut command) in root_commands(&built.root_tests, &tools, selection)? {
        eprintln!("+ {title} (as root, in namespaces of its own)");
        totals.run(&mut command)?;
    }
    totals.close(unchecked)
}

/// Runs one file of the root suite, or one test: with the engine asked for, else with the default one.
///
/// # Errors
/// Fails if there is no such file or test, if something does not build, or if a test fails.
pub(crate) fn run_one(
    path: &TestPath,
    engine: Option<&str>,
    peers: &Path,
    libtest_args: &[String],
) -> Result<()> {
    let files = test_files()?;
    if !files.contains(&path.file) {
        bail!("tests/tests/{}.rs does not exist; there are: {}", path.file, files.join(", "));
    }
    let built = build::one(&path.file)?;
    let test = built.root_tests.first().context("cargo built no test program")?;
    if list_tests(test, path.test.as_deref())?.is_empty() {
        let all = list_tests(test, None)?.join("\n  ");
        bail!("no test in {} has that name; there are:\n  {all}", path.file);
    }
    let mut totals = SuiteTotals::new(&skips());
    let tools = Tools { agent: &built.agent, peers };
    let mut command = root_command(test, &tools, engine);
    totals.run(command.args(&path.test).arg(TEST_THREADS).args(libtest_args))?;
    totals.close(&[])
}

/// Commands that run the root suite, each with a title. Leaves out programs without a selected test.
pub(crate) fn root_commands(
    tests: &[Executable],
    tools: &Tools,
    selection: Selection,
) -> Result<Vec<(String, Command)>> {
    let one_pass = [selection.engine];
    let passes = if selection.engine.is_some() { &one_pass[..] } else { &PASSES };
    let mut commands = Vec::new();
    for (number, &engine) in passes.iter().enumerate() {
        for test in tests {
            let filter = selection.filter.filter(|filter| !test.name.contains(filter));
            let is_repeated = number > 0 && names_engines(test)?;
            if is_repeated || list_tests(test, filter)?.is_empty() {
                continue;
            }
            let mut command = root_command(test, tools, engine);
            command.args(filter).arg(TEST_THREADS);
            let with = engine.map(|name| format!(", engine {name}")).unwrap_or_default();
            commands.push((format!("{}{with}", test.name), command));
        }
    }
    Ok(commands)
}

/// Builds all programs of the root suite.
///
/// # Errors
/// Fails if something does not build.
pub(crate) fn build_root_tests() -> Result<Vec<Executable>> {
    Ok(build::workspace()?.root_tests)
}

/// Runs a binary of the `tests` crate as root in namespaces of its own, on the standard streams of this process.
///
/// # Errors
/// Fails if something does not build, or if the program fails.
pub(crate) fn run_program(program: &str, args: &[String], peers: &Path) -> Result<()> {
    let Parts { agent, binary } = build::program(program)?;
    eprintln!("+ {} (as root, in namespaces of its own)", binary.display());
    let tools = Tools { agent: &agent, peers };
    let status = namespace::command(&tools, &[]).arg(binary).args(args).status()?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}

fn root_command(test: &Executable, tools: &Tools, engine: Option<&str>) -> Command {
    let mut variables = vec![format!("SNISPLIT_SKIPS={}", skips().display())];
    variables.extend(engine.map(|name| format!("SNISPLIT_TEST_ENGINE={name}")));
    if std::env::var_os("SNISPLIT_BLESS").is_some() {
        variables.push("SNISPLIT_BLESS=1".into());
    }
    let mut command = namespace::command(tools, &variables);
    command.arg(&test.path);
    command
}

/// Names of the tests of a program that a filter leaves.
fn list_tests(test: &Executable, filter: Option<&str>) -> Result<Vec<String>> {
    let list = ["--list", "--format", "terse"];
    let listed = capture_stdout(Command::new(&test.path).args(filter).args(list))?;
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

fn names_engines(test: &Executable) -> Result<bool> {
    let text =
        std::fs::read_to_string(&test.source).with_context(|| test.source.display().to_string())?;
    Ok(declares_named_engines(&text))
}

/// The declaration stands in front of the first item of a file.
fn declares_named_engines(source: &str) -> bool {
    let mut head = source.lines().take_while(|line| line.is_empty() || line.starts_with("//"));
    head.any(|line| line == NAMES_ENGINES)
}

/// Names of the files of the root suite.
fn test_files() -> Result<Vec<String>> {
    let entries = std::fs::read_dir(root().join("tests/tests"))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let is_rust = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let stems = paths.iter().filter(is_rust).filter_map(|path| path.file_stem()?.to_str());
    let mut names: Vec<_> = stems.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// File that tests write a line to when they skip themselves.
pub(crate) fn skips() -> PathBuf {
    root().join("target/skipped-tests")
}

#[cfg(test)]
mod tests {
    use super::{TestPath, declares_named_engines, test_files};

    #[test]
    fn a_test_is_named_by_its_file_and_its_name() {
        let parsed = |text| {
            let path = TestPath::parse(text);
            (path.file, path.test)
        };
        assert_eq!(parsed("split"), ("split".into(), None));
        assert_eq!(parsed("tests/tests/split.rs"), ("split".into(), None));
        assert_eq!(parsed("split::a::b"), ("split".into(), Some("a::b".into())));
        assert_eq!(parsed("split.rs::b"), ("split".into(), Some("b".into())));
    }

    #[test]
    fn a_declaration_counts_only_in_front_of_the_first_item() {
        assert!(declares_named_engines("//! Doc.\n\n//@ engines: named\n\nuse a;\n"));
        assert!(!declares_named_engines("//! Doc.\n\nuse a;\n//@ engines: named\n"));
        assert!(!declares_named_engines("//! Doc of engines: named\n\nuse a;\n"));
    }

    #[test]
    fn the_files_of_the_root_suite_are_listed() {
        assert!(test_files().unwrap().contains(&"split".to_owned()));
    }
}
