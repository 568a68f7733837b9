//! The house rules that a machine can check.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::run::root;

/// Files with more lines are reported, so that somebody asks whether they have one meaning.
const REPORTED_FILE_LINES: usize = 600;
/// A function with more lines fails the check: it does not fit a screen.
const MAX_FUNCTION_LINES: usize = 70;

/// Which of our own modules a module may name (design §2): all others are forbidden to it.
const IMPORTS: [(&str, &[&str]); 8] = [
    ("proxy-user/src/engine", &["engine", "bpf", "sys"]),
    ("proxy-user/src/conn", &["conn", "engine", "telemetry", "certs", "config", "dns", "sys"]),
    ("proxy-user/src/telemetry", &["telemetry"]),
    ("proxy-user/src/bpf", &["bpf", "sys"]),
    ("proxy-user/src/config", &["config", "certs", "engine", "telemetry"]),
    ("proxy-user/src/certs", &["certs", "file_stamp", "config"]),
    ("proxy-user/src/acme", &["acme", "certs", "config", "dns"]),
    ("proxy-user/src/net", &["config", "sys"]),
];

/// Words that must not stand in some place: folder, words, where they may, why not.
const FORBIDDEN: [(&str, &[&str], &str, &str); 6] = [
    (
        "proxy-common/src",
        &["std::net", "std::fs", "std::io", "std::process", "std::thread", "tokio", "::now()"],
        "",
        "the law does no I/O and asks no clock",
    ),
    (
        "proxy-ebpf/src",
        &["snisplit_common::"],
        "snisplit_common::abi",
        "the kernel shares only the ABI",
    ),
    ("proxy-user/src", &["aya::"], "bpf", "only `bpf` says aya"),
    ("proxy-user/src", &["unsafe {", "unsafe fn", "unsafe impl"], "sys.rs", "only `sys` is unsafe"),
    ("tests", &["thread::sleep", "#[ignore"], "", "wait for a condition with a deadline"),
    ("", &["todo!(", "unimplemented!(", "dbg!("], "tidy.rs", "finish it"),
];

pub(crate) fn check() -> Result<()> {
    let mut faults = Vec::new();
    let files = sources(&root())?;
    for path in &files {
        let text = fs::read_to_string(root().join(path))?;
        sizes(path, &text, &mut faults);
        imports(path, &text, &mut faults);
        words(path, &text, &mut faults);
    }
    if faults.is_empty() {
        eprintln!("tidy: {} files are in order", files.len());
        return Ok(());
    }
    bail!("{} house rules are broken:\n{}", faults.len(), faults.join("\n"))
}

/// All Rust files, from the workspace's root on.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name();
            let path = folder.join(&name);
            let is_ours = name != "target" && !name.to_string_lossy().starts_with('.');
            if entry.file_type()?.is_dir() && is_ours {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn sizes(path: &Path, text: &str, faults: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > REPORTED_FILE_LINES {
        eprintln!("tidy: {} has {lines} lines: has it one meaning?", path.display());
    }
    let mut open: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let code = line.trim_start();
        let indent = &line[..line.len() - code.len()];
        let is_function = ["fn ", "pub fn ", "async fn ", "pub async fn ", "const fn "]
            .iter()
            .any(|start| without_visibility(code).starts_with(start));
        if is_function && open.is_none() && !code.ends_with(';') && !code.ends_with('}') {
            open = Some((number, format!("{indent}}}")));
        } else if let Some((start, end)) = open.take_if(|(_, end)| line == end) {
            let length = number - start + 1;
            if length > MAX_FUNCTION_LINES && !end.is_empty() {
                let place = path.display();
                faults.push(format!("{place}:{}: a function of {length} lines", start + 1));
            }
        }
    }
}

fn without_visibility(code: &str) -> &str {
    let restricted = code.strip_prefix("pub(").and_then(|rest| rest.split_once(") "));
    restricted.map_or(code, |(_, rest)| rest)
}

fn imports(path: &Path, text: &str, faults: &mut Vec<String>) {
    let Some((_, allowed)) = IMPORTS.iter().find(|(of, _)| belongs_to(path, of)) else { return };
    for (number, line) in text.lines().enumerate() {
        for named in line.split("crate::").skip(1) {
            let module: String =
                named.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !module.is_empty() && !allowed.contains(&module.as_str()) {
                let place = path.display();
                faults.push(format!("{place}:{}: must not know `{module}`", number + 1));
            }
        }
    }
}

/// A module is `NAME.rs` or anything in the folder `NAME`.
fn belongs_to(path: &Path, module: &str) -> bool {
    path.starts_with(module) || path == Path::new(&format!("{module}.rs"))
}

fn words(path: &Path, text: &str, faults: &mut Vec<String>) {
    for (folder, forbidden, except, why) in FORBIDDEN {
        let name = path.to_string_lossy();
        let exempt = !except.is_empty() && name.contains(except);
        if !path.starts_with(folder) || exempt {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let rest = if except.is_empty() { line.to_owned() } else { line.replace(except, "") };
            for word in forbidden.iter().filter(|word| rest.contains(**word)) {
                faults.push(format!("{name}:{}: `{word}`: {why}", number + 1));
            }
        }
    }
}
