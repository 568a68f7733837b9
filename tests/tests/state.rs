//! What is on disk: killed at any instant, locked against a second agent, mended where it is broken.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use snisplit_tests::agent::{Agent, binary};
use snisplit_tests::lab::Lab;
use snisplit_tests::pebble::{self, Pebble};
use snisplit_tests::peer::{Peer, nginx_plain};
use snisplit_tests::wait::{pass, until};

const FRONT: [&str; 2] = ["--terminate", "front.test,www.front.test=10.91.2.2:8080"];

fn lab() -> (Lab, Peer) {
    let lab = Lab::new();
    let behind = nginx_plain(&lab, 8080, "plain nginx here");
    (lab, behind)
}

fn agent(lab: &Lab) -> Agent {
    let acme = pebble::flags(lab);
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    Agent::start(lab, &[&acme[..], &FRONT].concat())
}

fn host(lab: &Lab) -> PathBuf {
    lab.folder().join("state/10.91.1.2_14000")
}

fn folder(lab: &Lab) -> PathBuf {
    pebble::folder(lab, "front.test")
}

/// Starts the agent and kills it after a while; what it said.
fn killed_after(lab: &Lab, time: Duration) -> String {
    let mut command = Command::new(binary());
    command.args(["run", "--listen", "[::]:443"]).args(FRONT).args(pebble::flags(lab));
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = lab.proxy(|| command.spawn()).unwrap();
    pass(time);
    child.kill().unwrap();
    let done = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// 40 agents, each killed a little later in its order than the one before: one account, no key lost,
/// and every certificate that was written is whole.
#[test]
fn killed_at_any_instant_the_next_one_goes_on() {
    let (lab, _behind) = lab();
    let pebble = Pebble::start(&lab);
    let certificate = folder(&lab).join("certificate.pem");
    let (mut went_on, mut whole) = (0, 0);
    for point in 0..40 {
        let said = killed_after(&lab, Duration::from_millis(20 + 30 * point));
        assert!(!said.contains("panicked") && !said.contains("corrupt"), "{said}");
        went_on += said.matches("an order goes on where it was left").count();
        if certificate.exists() {
            whole += 1;
            let mut check = Command::new("openssl");
            check.args(["pkey", "-noout", "-check", "-in"]).arg(&certificate);
            assert!(check.output().unwrap().status.success());
            // So that the next one orders too.
            fs::remove_file(&certificate).unwrap();
        }
    }
    let _agent = agent(&lab);
    pebble.comes_to_vouch(&lab, "front.test");
    eprintln!("{went_on} orders went on, {whole} certificates, {} orders", pebble.count("orders"));
    assert!(went_on >= 5, "{went_on} orders went on");
    assert_eq!(pebble.count("accounts"), 1);
    assert!(!folder(&lab).join("order.json").exists(), "no order is left");
}

#[test]
fn a_second_agent_with_the_same_state_says_so() {
    let (lab, _behind) = lab();
    let pebble = Pebble::start(&lab);
    let _first = agent(&lab);
    pebble.comes_to_vouch(&lab, "front.test");
    let mut command = Command::new(binary());
    command.args(["run", "--listen", "127.0.0.1:8443"]).args(FRONT).args(pebble::flags(&lab));
    let second = lab.proxy(|| command.output()).unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("is in use by another snisplit"), "{said}");
}

#[test]
fn private_to_root_and_versioned() {
    use std::os::unix::fs::PermissionsExt as _;
    let (lab, _behind) = lab();
    let pebble = Pebble::start(&lab);
    let first = agent(&lab);
    pebble.comes_to_vouch(&lab, "front.test");
    let mut folders = vec![lab.folder().join("state")];
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
    assert!(files >= 4, "lock, account, certificate and status");
    drop(first);
    fs::write(lab.folder().join("state/lock"), "snisplit state, layout 2\n").unwrap();
    let mut command = Command::new(binary());
    command.args(["run", "--listen", "127.0.0.1:8443"]).args(FRONT).args(pebble::flags(&lab));
    let newer = lab.proxy(|| command.output()).unwrap();
    let said = String::from_utf8_lossy(&newer.stderr).into_owned();
    assert!(said.contains("has another layout (snisplit state, layout 2)"), "{said}");
}

/// A file that is broken is set aside and said so; the agent goes on without it.
#[test]
fn corrupt_files_are_set_aside() {
    let (lab, _behind) = lab();
    let pebble = Pebble::start(&lab);
    let first = agent(&lab);
    let before = pebble.comes_to_vouch(&lab, "front.test");
    until("the status", || folder(&lab).join("status.json").exists().then_some(()));
    drop(first);
    let broken = [
        folder(&lab).join("certificate.pem"),
        folder(&lab).join("status.json"),
        host(&lab).join("account.json"),
    ];
    for path in &broken {
        fs::write(path, "\0\0\0 half a block").unwrap();
    }
    let second = agent(&lab).may_warn();
    let after = pebble.comes_to_vouch(&lab, "front.test");
    assert_ne!(before, after);
    assert_eq!(second.logged("is corrupt ("), 3, "{}", second.log());
    for path in &broken {
        let aside = fs::read_dir(path.parent().unwrap()).unwrap().any(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.starts_with(path.file_stem().unwrap().to_str().unwrap())
                && name.contains(".corrupt-")
        });
        assert!(aside, "{} is kept", path.display());
    }
}

/// A CA that has lost our account gets the same key again.
#[test]
fn an_account_that_the_ca_forgot_is_made_anew() {
    let (lab, _behind) = lab();
    let first_ca = Pebble::start(&lab);
    let first = agent(&lab);
    first_ca.comes_to_vouch(&lab, "front.test");
    drop(first);
    let key = |text: String| text.lines().find(|line| line.contains("\"key\"")).unwrap().to_owned();
    let account = host(&lab).join("account.json");
    let before = key(fs::read_to_string(&account).unwrap());
    drop(first_ca);
    let second_ca = Pebble::start(&lab);
    fs::remove_file(folder(&lab).join("certificate.pem")).unwrap();
    let second = agent(&lab).may_warn();
    until("the refusal", || second.log().contains("accountDoesNotExist").then_some(()));
    fs::write(folder(&lab).join("renew"), "").unwrap();
    second_ca.comes_to_vouch(&lab, "front.test");
    assert_eq!(key(fs::read_to_string(&account).unwrap()), before);
}
