//! Output of `check`, `explain` and `doctor`.
//!
//! The expected texts are in `tests/snapshots`. `SNISPLIT_BLESS=1` writes them again; read the diff then.

//@ engines: named

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use snisplit_tests::agent::binary_path;
use snisplit_tests::lab::Lab;
use snisplit_tests::wait::wait_until;

fn test_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn run_snisplit(words: &[&str]) -> Output {
    let mut command = Command::new(binary_path());
    command.args(words).current_dir(test_dir("configs")).env("NO_COLOR", "1").output().unwrap()
}

fn output_text(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(text).unwrap()
}

#[track_caller]
fn matches_snapshot(name: &str, text: &str) {
    let path = test_dir("snapshots").join(name);
    if std::env::var_os("SNISPLIT_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let want = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, want, "{} differs", path.display());
}

/// Each broken file in `tests/configs` has one fault, and an error that no other file has.
#[test]
fn broken_configs_get_errors_that_help() {
    let mut all = String::new();
    let mut names: Vec<_> = fs::read_dir(test_dir("configs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("bad-"))
        .collect();
    names.sort();
    assert!(names.len() >= 15, "{names:?}");
    let mut errors = std::collections::BTreeSet::new();
    for name in &names {
        let output = run_snisplit(&["check", "-c", name]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        let text = output_text(&output);
        assert!(text.starts_with(name.as_str()), "{text}");
        errors.insert(text.replace(name, "FILE"));
        all += &text;
    }
    all += &output_text(&run_snisplit(&["check", "-c", "there-is-none.toml"]));
    matches_snapshot("check.txt", &all);
    assert_eq!(errors.len(), names.len(), "two files have the same error");
}

#[test]
fn good_configs_pass() {
    for name in ["good-full.toml", "good-least.toml"] {
        let output = run_snisplit(&["check", "-c", name]);
        assert!(output.status.success(), "{}", output_text(&output));
    }
}

#[test]
fn explain_prints_route_line_decision_and_reason() {
    let mut all = String::new();
    for words in [
        &["--sni", "a.test", "--alpn", "h2"][..],
        &["--sni", "www.a.test", "--alpn", "acme-tls/1"],
        &["--sni", "x.wild.test"],
        &["--sni", "local.test"],
        &["--sni", "victim.test", "--alpn", "acme-tls/1"],
        &["--sni", "a.test", "--alpn", "acme-tls/1", "--acme-bypass", "never"],
        &["--sni", "victim.test", "--alpn", "acme-tls/1", "--acme-bypass", "always"],
        &["--sni", "front.test"],
        &["--sni", "front.test", "--alpn", "acme-tls/1"],
        &["--sni", "own.wild.test"],
        &["--sni", "any.zone.test"],
        &["--sni", "x.b.test"],
        &["--sni", "a.test."],
        &[],
        &["--client-hello", "../client_hellos/chromium.bin"],
        &["--client-hello", "../client_hellos/openssl-acme.bin"],
        &["--client-hello", "good-least.toml"],
        &["--sni", "a.test", "--engine", "copy", "--route", "a.test=[::1]:1;acme=reject"],
    ] {
        let output = run_snisplit(&[&["explain", "--config", "good-full.toml"], words].concat());
        all += &format!("$ snisplit explain {}\n{}\n", words.join(" "), output_text(&output));
    }
    matches_snapshot("explain.txt", &all);
}

#[test]
fn wrong_flags_are_named() {
    let mut all = String::new();
    for words in [
        &["--listen", "443", "--route", "a.test=10.0.0.1:443"][..],
        &["--listen", "[::]:443", "--route", "a.test"],
        &["--listen", "[::]:443", "--route", "a.test=10.0.0.1:443;acme=maybe"],
        &["--listen", "[::]:443", "--route", "a.test=10.0.0.1:443;send_proxi=v2"],
        &["--listen", "[::]:443", "--route", "a.test=h:1", "--route", "b.test,a.test=h:2"],
        &["--listen", "[::]:443", "--terminate", "a.test=127.0.0.1:80"],
        &["--listen", "[::]:443", "--terminate", "a.test=127.0.0.1:80;acme=auto"],
        &["--drain-timeout", "soon", "--max-client-hello-bytes", "12", "--max-connections", "many"],
    ] {
        let output = run_snisplit(&[&["run"], words].concat());
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        all += &format!("$ snisplit run {}\n{}\n", words.join(" "), output_text(&output));
    }
    for words in [&["--engine", "warp"][..], &["--starttls", "imap"]] {
        let output = run_snisplit(&[&["run"], words].concat());
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        all += &format!("$ snisplit run {}\n{}\n", words.join(" "), output_text(&output));
    }
    matches_snapshot("flags.txt", &all);
}

/// The kernel of this machine accepts the BPF programs, and their log reaches standard error.
#[test]
fn doctor_loads_and_runs_the_kernel_program() {
    let lab = Lab::new();
    let mut command = Command::new(binary_path());
    command.args(["doctor", "--ebpf-log-level", "debug"]).env("NO_COLOR", "1");
    let output = lab.in_proxy(|| command.output()).unwrap();
    let text = output_text(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("ok    engine sockmap   flows over loopback"), "{text}");
    assert!(text.contains("DEBUG end of stream"), "the log of the BPF program is missing: {text}");
    assert!(text.contains("ok    engine splice"), "{text}");
    assert!(text.contains("ok    engine packet    attaches; 2 interfaces"), "{text}");

    let mut quiet = Command::new(binary_path());
    let output = lab.in_proxy(|| quiet.arg("doctor").output()).unwrap();
    assert!(
        !output_text(&output).contains("DEBUG"),
        "the log of the BPF program is off by default"
    );

    lab.set_drop_rules(&["in tcp dport 1 drop"]);
    let text =
        output_text(&lab.in_proxy(|| Command::new(binary_path()).arg("doctor").output()).unwrap());
    assert!(text.contains("bypass all rules of netfilter (1 table here)"), "{text}");
}

/// The verifier gives up with EAGAIN if the process is stopped (SIGSTOP) or frozen meanwhile.
#[test]
fn an_interrupted_program_load_is_retried() {
    let lab = Lab::new();
    let mut command = Command::new(binary_path());
    command.arg("doctor").stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = lab.in_proxy(|| command.spawn()).unwrap();
    let signal = |signal| kill_process(Pid::from_child(&child), signal).unwrap();
    let mut interrupted = 0;
    wait_until("the verifier to be interrupted four times", || {
        signal(Signal::STOP);
        let is_loading = wait_until("the process to stop", || stopped_while_loading(child.id()));
        signal(Signal::CONT);
        interrupted += usize::from(is_loading);
        (interrupted == 4).then_some(())
    });
    let text = output_text(&child.wait_with_output().unwrap());
    assert!(text.contains("ok    engine sockmap"), "{text}");
    assert!(text.contains("ok    engine packet"), "{text}");
}

/// Returns whether a thread was in `bpf(BPF_PROG_LOAD)` (proc_pid_syscall(5)); `None` until all threads are
/// stopped.
fn stopped_while_loading(pid: u32) -> Option<bool> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: &Path, file| fs::read_to_string(task.join(file)).unwrap_or_default();
    let tasks: Vec<PathBuf> = tasks.map(|task| task.unwrap().path()).collect();
    let are_stopped = tasks.iter().all(|task| of(task, "stat").contains(") T "));
    let call = format!("{} 0x5 ", libc::SYS_bpf);
    are_stopped.then(|| tasks.iter().any(|task| of(task, "syscall").starts_with(&call)))
}

#[test]
fn doctor_reports_missing_privileges() {
    let lab = Lab::new();
    let mut command = Command::new("setpriv");
    let powerless = ["--bounding-set", "-all", "--inh-caps", "-all", "--reuid", "65534"];
    command.args(powerless).args(["--clear-groups", &binary_path(), "doctor"]);
    let output = lab.in_proxy(|| command.output()).unwrap();
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("NO    engine sockmap"), "{text}");
    assert!(text.contains("CAP_BPF"), "{text}");
}
