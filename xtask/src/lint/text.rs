//! Text that a folder must not contain, and files that are long.

use std::path::Path;

use super::finding::{Finding, Rule};

/// A file with more lines is reported, because it may have more than one meaning.
const REPORTED_FILE_LINES: usize = 600;

/// Text that must not stand in the Rust files of a folder.
struct Forbidden {
    folder: &'static str,
    texts: &'static [&'static str],
    /// Path that is exempt, a file or a folder.
    exempt: Option<&'static str>,
    /// Longer text that contains a forbidden one and is allowed.
    allowed: Option<&'static str>,
    reason: &'static str,
}

const FORBIDDEN: [Forbidden; 6] = [
    Forbidden {
        folder: "proxy-common/src",
        texts: &[
            "std::net",
            "std::fs",
            "std::io",
            "std::process",
            "std::thread",
            "tokio",
            "::now()",
        ],
        exempt: None,
        allowed: None,
        reason: "proxy-common does no I/O and reads no clock",
    },
    Forbidden {
        folder: "proxy-ebpf/src",
        texts: &["snisplit_common::"],
        exempt: None,
        allowed: Some("snisplit_common::abi"),
        reason: "the BPF programs share only the ABI with the agent",
    },
    Forbidden {
        folder: "proxy-user/src",
        texts: &["aya::"],
        exempt: Some("proxy-user/src/bpf"),
        allowed: None,
        reason: "only the module bpf uses aya",
    },
    Forbidden {
        folder: "proxy-user/src",
        texts: &["unsafe {", "unsafe fn", "unsafe impl"],
        exempt: Some("proxy-user/src/sys"),
        allowed: None,
        reason: "only the module sys has unsafe code",
    },
    Forbidden {
        folder: "tests",
        texts: &["thread::sleep", "#[ignore"],
        exempt: None,
        allowed: None,
        reason: "a test waits for a condition with a deadline",
    },
    Forbidden {
        folder: "",
        texts: &["todo!(", "unimplemented!(", "dbg!("],
        exempt: Some("xtask/src/lint/text"),
        allowed: None,
        reason: "finish it",
    },
];

/// Reports forbidden text as findings, and a long file on standard error.
pub(super) fn check(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let lines = text.lines().count();
    if lines > REPORTED_FILE_LINES {
        eprintln!("lint: {} has {lines} lines: does it have one meaning?", path.display());
    }
    for rule in &FORBIDDEN {
        if !path.starts_with(rule.folder)
            || rule.exempt.is_some_and(|exempt| is_module(path, exempt))
        {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let line =
                rule.allowed.map_or_else(|| line.to_owned(), |allowed| line.replace(allowed, ""));
            for found in rule.texts.iter().filter(|text| line.contains(**text)) {
                let message = format!("`{found}`: {}", rule.reason);
                findings.push(Finding::at_line(Rule::ForbiddenText, path, number + 1, message));
            }
        }
    }
}

/// A module is `NAME.rs` or anything in the folder `NAME`.
fn is_module(path: &Path, module: &str) -> bool {
    path.starts_with(module) || path == Path::new(&format!("{module}.rs"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn count(path: &str, text: &str) -> usize {
        let mut findings = Vec::new();
        super::check(Path::new(path), text, &mut findings);
        findings.len()
    }

    #[test]
    fn forbidden_text_is_found_outside_of_its_exempt_module() {
        assert_eq!(count("proxy-user/src/engine.rs", "let x = unsafe { y };"), 1);
        assert_eq!(count("proxy-user/src/sys.rs", "let x = unsafe { y };"), 0);
        assert_eq!(count("proxy-user/src/sys/tcp.rs", "let x = unsafe { y };"), 0);
        assert_eq!(count("proxy-user/src/system.rs", "let x = unsafe { y };"), 1);
        assert_eq!(count("proxy-user/src/bpf/pins.rs", "use aya::Ebpf;"), 0);
        assert_eq!(count("tests/tests/split.rs", "thread::sleep(SECOND);"), 1);
    }

    #[test]
    fn allowed_text_does_not_hide_a_forbidden_one() {
        assert_eq!(count("proxy-ebpf/src/main.rs", "use snisplit_common::abi::Flow;"), 0);
        assert_eq!(count("proxy-ebpf/src/main.rs", "use snisplit_common::routes::Routes;"), 1);
    }
}
