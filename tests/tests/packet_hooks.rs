//! Where at an interface the packet engine's programs are, and that flows do not notice when that
//! changes. `clsact` is what kernels before 6.6 have.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::is_since;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::spliced::{begin, carry};
use snisplit_tests::stream::{listen, read_some, write};
use snisplit_tests::wait::until;

/// A configuration in which the engine is at this hook.
fn config(lab: &Lab, hook: &str) -> PathBuf {
    let file = lab.folder().join(format!("{hook}.toml"));
    let text = format!(
        "engine = \"packet\"\n[[listener]]\naddress = \"0.0.0.0:{}\"\n[[route]]\n\
         sni = [\"a.test\"]\nbackends = [\"10.91.2.2:8001\"]\n[packet]\nhook = \"{hook}\"\n",
        agent::PORT
    );
    fs::write(&file, text).unwrap();
    file
}

/// Our programs at all interfaces of the proxy: as filters, and at tcx (Debian's bpftool does not know
/// these, but they are pinned).
fn places(lab: &Lab) -> (usize, usize) {
    let shown = lab.proxy(|| Command::new("bpftool").args(["net", "show"]).output()).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let filters = shown.lines().filter(|line| line.contains("clsact/") && line.contains("sni_"));
    let pins = fs::read_dir(format!("/sys/fs/bpf/snisplit/{}", lab.names()[1]));
    let names = pins.into_iter().flatten().map(|pin| pin.unwrap().file_name());
    let is_link = |name: &str| name.starts_with("in_") || name.starts_with("out_");
    (filters.count(), names.filter(|name| is_link(name.to_str().unwrap())).count())
}

fn has_tcx() -> bool {
    is_since(6, 6)
}

fn speak((client, server): &(TcpStream, TcpStream)) {
    write(client, b"up");
    assert_eq!(read_some(server, 2), b"up");
    write(server, b"down");
    assert_eq!(read_some(client, 4), b"down");
}

fn started(lab: &Lab, hook: &str, adopts: usize) -> Agent {
    let agent = Agent::start_from(lab, &config(lab, hook), &[]);
    let told = format!("flows of a former agent go on flows={adopts}");
    assert_eq!(agent.logged(&told), usize::from(adopts > 0), "{}", agent.log());
    agent
}

fn killed(agent: Agent) {
    agent.signal(Signal::KILL);
    drop(agent.may_warn());
}

fn flows(lab: &Lab, listener: &TcpListener) -> Vec<(TcpStream, TcpStream)> {
    (0..3).map(|_| begin(lab, agent::address(), listener)).collect()
}

fn tc(lab: &Lab, words: &[&str]) -> String {
    let done = lab.proxy(|| Command::new("tc").args(words).output()).unwrap();
    assert!(done.status.success(), "{words:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn flows_outlive_their_agent_at_either_hook() {
    let lab = Lab::new();
    let listener = listen(&lab, backend(8001));
    let agent = started(&lab, "clsact", 0);
    let (filters, at_tcx) = places(&lab);
    assert!(filters >= 4 && at_tcx == 0, "{filters} {at_tcx}");
    let mut pairs = flows(&lab, &listener);
    let hooks = [("clsact", (filters, 0)), ("tcx", (0, filters)), ("clsact", (filters, 0))];
    let mut running = agent;
    for (hook, want) in hooks.into_iter().filter(|(hook, _)| *hook == "clsact" || has_tcx()) {
        killed(running);
        pairs.iter().for_each(speak);
        running = started(&lab, hook, pairs.len());
        assert_eq!(places(&lab), want, "{hook}");
        pairs.iter().for_each(speak);
        pairs.extend(flows(&lab, &listener));
    }
    for pair in &pairs {
        carry(pair, 300_000);
        let record = running.record();
        assert_eq!((&record["outcome"], &record["engine"]), (&"closed".into(), &"packet".into()));
    }
    running.signal(Signal::TERM);
    assert!(running.exit().success());
    assert_eq!(places(&lab), (0, 0), "it takes its programs with it");
}

/// Where there is no tcx, wishing for it is told apart from programs that do not work.
#[test]
fn a_hook_that_this_kernel_has_not() {
    let lab = Lab::new();
    if has_tcx() {
        assert_eq!(started(&lab, "tcx", 0).logged("hook=Tcx"), 1);
        return;
    }
    let file = config(&lab, "tcx");
    let run = || Command::new(agent::binary()).arg("run").arg("-c").arg(file).output();
    let done = lab.proxy(run).unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        !done.status.success() && said.contains("packet.hook: Linux has tcx since 6.6"),
        "{said}"
    );
}

#[test]
fn filters_go_with_what_is_dropped() {
    let lab = Lab::new();
    let listener = listen(&lab, backend(8001));
    let instance = lab.names()[1].to_owned();
    let agent = started(&lab, "clsact", 0);
    let _pair = begin(&lab, agent::address(), &listener);
    agent.signal(Signal::KILL);
    let drop = ["flows", "drop", "--instance", &instance];
    let ask = || Command::new(agent::binary()).args(drop).output().unwrap();
    until("the agent to be dead", || lab.proxy(ask).status.success().then_some(()));
    assert_eq!(places(&lab), (0, 0));
}

/// What others have at an interface stays there.
#[test]
fn filters_of_others_stay() {
    let lab = Lab::new();
    tc(&lab, &["qdisc", "add", "dev", "to-2002", "clsact"]);
    let filter = ["dev", "to-2002", "ingress", "pref", "1", "handle", "7", "bpf"];
    let words = ["bytecode", "1,6 0 0 0", "flowid", "1:9"];
    tc(&lab, &[&["filter", "add"][..], &filter, &words].concat());
    let mut agent = started(&lab, "clsact", 0);
    let listener = listen(&lab, backend(8001));
    let pair = begin(&lab, agent::address(), &listener);
    carry(&pair, 300_000);
    assert_eq!(agent.record()["engine"], "packet");
    agent.signal(Signal::TERM);
    assert!(agent.exit().success());
    assert_eq!(places(&lab), (0, 0));
    assert!(tc(&lab, &["filter", "show", "dev", "to-2002", "ingress"]).contains("handle 0x7"));
}

/// An answer that arrives where the programs are not is for the socket, and the flow stays with it.
#[test]
fn an_answer_that_no_program_sees() {
    let lab = Lab::new();
    let agent = started(&lab, "clsact", 0);
    tc(&lab, &["qdisc", "del", "dev", "to-2002", "clsact"]);
    let pair = begin(&lab, agent::address(), &listen(&lab, backend(8001)));
    carry(&pair, 300_000);
    assert_eq!(agent.record()["engine"], "splice");
    let declined = "snisplit_engine_declined_total{engine=\"packet\",reason=\"bytes_at_a_socket\"}";
    assert_eq!(agent.metric(&lab, declined), 1.0);
}
