//! The state directory: after a kill at any time, locked against a second agent, and with corrupt files.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use snisplit_tests::agent::{Agent, binary_path};
use snisplit_tests::lab::Lab;
use snisplit_tests::pebble::{self, Pebble};
use snisplit_tests::peer::{ServerProcess, nginx_plain};
use snisplit_tests::wait::{sleep_for, wait_until};

const TERMINATE: [&str; 2] = ["--terminate", "front.test,www.front.test=10.91.2.2:8080"];

fn create_lab() -> (Lab, ServerProcess) {
    let lab = Lab::new();
    let backend = nginx_plain(&lab, 8080, "plain nginx here");
    (lab, backend)
}

fn start_agent(lab: &Lab) -> Agent {
    let acme = pebble::acme_flags(lab);
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    Agent::start(lab, &[&acme[..], &TERMINATE].concat())
}

fn ca_state_dir(lab: &Lab) -> PathBuf {
    lab.dir().join("state/10.91.1.2_14000")
}

fn certificate_dir(lab: &Lab) -> PathBuf {
    pebble::certificate_dir(lab, "front.test")
}

/// Starts an agent and kills it after `time`. Returns its log.
fn run_and_kill_after(lab: &Lab, time: Duration) -> String {
    let mut command = Command::new(binary_path());
    command.args(["run", "--listen", "[::]:443"]).args(TERMINATE).args(pebble::acme_flags(lab));
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = lab.in_proxy(|| command.spawn()).unwrap();
    sleep_for(time);
    child.kill().unwrap();
    let done = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// 40 agents are killed, each a little later in its order than the one before. Then there is one account, no key is
/// lost, and every certificate on disk is complete.
#[test]
fn an_agent_killed_at_any_time_is_resumed_by_the_next() {
    let (lab, _backend) = create_lab();
    let pebble = Pebble::start(&lab);
    let certificate = certificate_dir(&lab).join("certificate.pem");
    let (mut resumed, mut certificates) = (0, 0);
    for point in 0..40 {
        let output = run_and_kill_after(&lab, Duration::from_millis(20 + 30 * point));
        assert!(!output.contains("panicked") && !output.contains("corrupt"), "{output}");
        resumed += output.matches("order resumed").count();
        if certificate.exists() {
            certificates += 1;
            let mut check = Command::new("openssl");
            check.args(["pkey", "-noout", "-check", "-in"]).arg(&certificate);
            assert!(check.output().unwrap().status.success());
            // The next agent orders again.
            fs::remove_file(&certificate).unwrap();
        }
    }
    let _agent = start_agent(&lab);
    pebble.wait_for_certificate(&lab, "front.test");
    eprintln!(
        "{resumed} orders resumed, {certificates} certificates, {} orders",
        pebble.logged_count("orders")
    );
    assert!(resumed >= 5, "{resumed} orders resumed");
    assert_eq!(pebble.logged_count("accounts"), 1);
    assert!(!certificate_dir(&lab).join("order.json").exists(), "a completed order is removed");
}

#[test]
fn a_second_agent_with_the_same_state_is_refused() {
    let (lab, _backend) = create_lab();
    let pebble = Pebble::start(&lab);
    let _first = start_agent(&lab);
    pebble.wait_for_certificate(&lab, "front.test");
    let mut command = Command::new(binary_path());
    command
        .args(["run", "--listen", "127.0.0.1:8443"])
        .args(TERMINATE)
        .args(pebble::acme_flags(&lab));
    let second = lab.in_proxy(|| command.output()).unwrap();
    let output = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{output}");
    assert!(output.contains("is in use by another snisplit"), "{output}");
}

#[test]
fn state_files_are_private_and_versioned() {
    use std::os::unix::fs::PermissionsExt as _;
    let (lab, _backend) = create_lab();
    let pebble = Pebble::start(&lab);
    let first = start_agent(&lab);
    pebble.wait_for_certificate(&lab, "front.test");
    let mut folders = vec![lab.dir().join("state")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
                files += 1;
            }
        }
    }
    assert!(files >= 4, "lock, account, certificate and status are expected");
    drop(first);
    fs::write(lab.dir().join("state/lock"), "snisplit state, layout 2\n").unwrap();
    let mut command = Command::new(binary_path());
    command
        .args(["run", "--listen", "127.0.0.1:8443"])
        .args(TERMINATE)
        .args(pebble::acme_flags(&lab));
    let newer = lab.in_proxy(|| command.output()).unwrap();
    let output = String::from_utf8_lossy(&newer.stderr).into_owned();
    assert!(output.contains("has another layout (snisplit state, layout 2)"), "{output}");
}

/// The agent renames a corrupt file, logs that, and continues without it.
#[test]
fn corrupt_state_files_are_moved_aside() {
    let (lab, _backend) = create_lab();
    let pebble = Pebble::start(&lab);
    let first = start_agent(&lab);
    let before = pebble.wait_for_certificate(&lab, "front.test");
    wait_until("the status", || certificate_dir(&lab).join("status.json").exists().then_some(()));
    drop(first);
    let broken = [
        certificate_dir(&lab).join("certificate.pem"),
        certificate_dir(&lab).join("status.json"),
        ca_state_dir(&lab).join("account.json"),
    ];
    for path in &broken {
        fs::write(path, "\0\0\0 half a block").unwrap();
    }
    let second = start_agent(&lab).allow_warnings();
    let after = pebble.wait_for_certificate(&lab, "front.test");
    assert_ne!(before, after);
    assert_eq!(second.log_count("is corrupt ("), 3, "{}", second.log());
    for path in &broken {
        let is_kept = fs::read_dir(path.parent().unwrap()).unwrap().any(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.starts_with(path.file_stem().unwrap().to_str().unwrap())
                && name.contains(".corrupt-")
        });
        assert!(is_kept, "{} is not kept", path.display());
    }
}

/// A CA has lost the account. The agent creates it again with the same key.
#[test]
fn an_account_unknown_to_the_ca_is_created_again() {
    let (lab, _backend) = create_lab();
    let first_ca = Pebble::start(&lab);
    let first = start_agent(&lab);
    first_ca.wait_for_certificate(&lab, "front.test");
    drop(first);
    let key = |text: String| text.lines().find(|line| line.contains("\"key\"")).unwrap().to_owned();
    let account = ca_state_dir(&lab).join("account.json");
    let before = key(fs::read_to_string(&account).unwrap());
    drop(first_ca);
    let second_ca = Pebble::start(&lab);
    fs::remove_file(certificate_dir(&lab).join("certificate.pem")).unwrap();
    let second = start_agent(&lab).allow_warnings();
    wait_until("a rejected request", || second.log().contains("accountDoesNotExist").then_some(()));
    fs::write(certificate_dir(&lab).join("renew"), "").unwrap();
    second_ca.wait_for_certificate(&lab, "front.test");
    assert_eq!(key(fs::read_to_string(&account).unwrap()), before);
}
