//! The default configuration file, output as JSON, completions and man pages.

//@ engines: named

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use snisplit_tests::agent::binary_path;

fn configs() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

fn run_snisplit(args: &[&str]) -> Output {
    Command::new(binary_path()).args(args).current_dir(configs()).output().unwrap()
}

fn stdout_text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn run_json(args: &[&str]) -> Value {
    let output = run_snisplit(&[args, &["--output", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn check_reports_in_json() {
    let report = run_json(&["check", "-c", "good-full.toml"]);
    assert_eq!((&report["valid"], &report["problems"]), (&true.into(), &Value::Null));
    assert_eq!(report["summary"]["routes"], 6);

    let broken = "bad-acme-contact.toml";
    let text = String::from_utf8(run_snisplit(&["check", "-c", broken]).stderr).unwrap();
    let report = run_json(&["check", "-c", broken]);
    let problem = &report["problems"][0];
    let (line, key) = (&problem["line"], problem["key"].as_str().unwrap());
    let message = problem["message"].as_str().unwrap();
    assert_eq!((&report["valid"], &problem["file"]), (&false.into(), &broken.into()));
    assert_eq!(text, format!("{broken}:{line}: {key}: {message}\n"));

    let report = run_json(&["check", "-c", "there-is-none.toml"]);
    assert_eq!(report["problems"][0]["file"], "there-is-none.toml");
    let report = run_json(&["check", "--listen", "nowhere", "--route", "a.test=10.0.0.5:443"]);
    assert_eq!(report["problems"][0]["flag"], "--listen nowhere");
}

#[test]
fn explain_and_doctor_report_in_json() {
    let args = ["explain", "-c", "good-full.toml", "--sni", "a.test", "--alpn", "acme-tls/1"];
    let explanation = run_json(&args);
    assert_eq!(explanation["is_acme_validation"], true);
    assert_eq!(explanation["route"]["match"], "exact");
    assert_eq!(explanation["decision"]["action"], "forward");
    assert_eq!(explanation["decision"]["reason"], "name_owner");

    let checks = run_json(&["doctor"]);
    let copy = checks.as_array().unwrap().iter().find(|check| check["check"] == "engine copy");
    assert_eq!(copy.unwrap()["status"], "ok");
}

/// Runs `check` where `/etc/snisplit/snisplit.toml` has this text, in a mount namespace of its own.
fn check_with_default_file(text: &str, args: &str) -> Output {
    let script = format!(
        "mount -t tmpfs sp-etc /etc && mkdir /etc/snisplit && cat > /etc/snisplit/snisplit.toml && \
         \"$0\" check {args}"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, &binary_path()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn the_default_file_is_read_unless_the_flags_are_a_whole_configuration() {
    let file = fs::read_to_string(configs().join("good-least.toml")).unwrap();
    let output = check_with_default_file(&file, "");
    assert!(stdout_text(&output).starts_with("/etc/snisplit/snisplit.toml: ok"), "{output:?}");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("reading the default configuration file"), "{log}");

    // A flag that is not all of a configuration is laid over the file.
    let output = check_with_default_file(&file, "--engine copy");
    assert!(stdout_text(&output).ends_with("engine copy\n"), "{output:?}");

    let complete = "--listen 127.0.0.1:1 --route a.test=10.0.0.5:443";
    let output = check_with_default_file("no TOML", complete);
    assert!(stdout_text(&output).starts_with("flags: ok"), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn shells_complete_verbs_and_values() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(run_snisplit(&["completions", shell]).stdout.len() > 1_000, "{shell}");
    }
    let complete = |words: &str, index: usize, current: &str, previous: &str| {
        let script = format!(
            "source <(\"$0\" completions bash); COMP_WORDS=({words}); COMP_CWORD={index}; \
             _snisplit snisplit '{current}' '{previous}'; echo \"${{COMPREPLY[@]}}\""
        );
        let output = Command::new("bash").args(["-c", &script, &binary_path()]).output().unwrap();
        stdout_text(&output).trim().to_owned()
    };
    assert_eq!(complete("snisplit expl", 1, "expl", "snisplit"), "explain");
    assert_eq!(
        complete("snisplit run --engine \"\"", 3, "", "--engine"),
        "auto packet sockmap splice copy"
    );
}

#[test]
fn man_shows_the_pages() {
    let folder = tempfile::tempdir().unwrap();
    let section = folder.path().join("man1");
    let output = run_snisplit(&["man", section.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let man = |page: &str| {
        let mut command = Command::new("man");
        command.arg("-M").arg(folder.path()).arg(page).env("MANPAGER", "cat").env("MANWIDTH", "80");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        stdout_text(&output)
    };
    assert!(man("snisplit").contains("snisplit-flows(1)"));
    assert!(man("snisplit-run").contains("--first-byte-timeout"));
    assert!(man("snisplit-flows-reset").contains("ADDRESS:PORT"));
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_failure() {
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let mut command = Command::new(binary_path());
    command.args(["explain", "-c", "good-full.toml"]).current_dir(configs()).stdout(write);
    let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
