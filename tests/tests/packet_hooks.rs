//! Where at an interface the packet engine's programs are, and that flows do not notice when that
//! changes. `clsact` is what kernels before 6.6 have.

//@ engines: named

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::kernel_at_least;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::offloaded_flow::{connect_offloaded, transfer_both_ways};
use snisplit_tests::stream::{listen, read_exact, write};
use snisplit_tests::wait::wait_until;

/// A configuration in which the engine is at this hook.
fn write_config(lab: &Lab, hook: &str) -> PathBuf {
    let file = lab.dir().join(format!("{hook}.toml"));
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
fn count_attachments(lab: &Lab) -> (usize, usize) {
    let shown = lab.in_proxy(|| Command::new("bpftool").args(["net", "show"]).output()).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let filters = shown.lines().filter(|line| line.contains("clsact/") && line.contains("sni_"));
    let pins = fs::read_dir(format!("/sys/fs/bpf/snisplit/{}", lab.namespace_names()[1]));
    let names = pins.into_iter().flatten().map(|pin| pin.unwrap().file_name());
    let is_link = |name: &str| name.starts_with("in_") || name.starts_with("out_");
    (filters.count(), names.filter(|name| is_link(name.to_str().unwrap())).count())
}

fn has_tcx() -> bool {
    kernel_at_least(6, 6)
}

fn exchange_both_ways((client, server): &(TcpStream, TcpStream)) {
    write(client, b"up");
    assert_eq!(read_exact(server, 2), b"up");
    write(server, b"down");
    assert_eq!(read_exact(client, 4), b"down");
}

fn start_agent(lab: &Lab, hook: &str, adopts: usize) -> Agent {
    let agent = Agent::start_with_config(lab, &write_config(lab, hook), &[]);
    let message = format!("flows of a former agent go on flows={adopts}");
    assert_eq!(agent.log_count(&message), usize::from(adopts > 0), "{}", agent.log());
    agent
}

fn kill_agent(agent: Agent) {
    agent.signal(Signal::KILL);
    drop(agent.allow_warnings());
}

fn connect_flows(lab: &Lab, listener: &TcpListener) -> Vec<(TcpStream, TcpStream)> {
    (0..3).map(|_| connect_offloaded(lab, agent::address(), listener)).collect()
}

fn run_tc(lab: &Lab, words: &[&str]) -> String {
    let done = lab.in_proxy(|| Command::new("tc").args(words).output()).unwrap();
    assert!(done.status.success(), "{words:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn flows_survive_their_agent_at_either_hook() {
    let lab = Lab::new();
    let listener = listen(&lab, backend(8001));
    let agent = start_agent(&lab, "clsact", 0);
    let (filters, at_tcx) = count_attachments(&lab);
    assert!(filters >= 4 && at_tcx == 0, "{filters} {at_tcx}");
    let mut pairs = connect_flows(&lab, &listener);
    let hooks = [("clsact", (filters, 0)), ("tcx", (0, filters)), ("clsact", (filters, 0))];
    let mut running = agent;
    for (hook, want) in hooks.into_iter().filter(|(hook, _)| *hook == "clsact" || has_tcx()) {
        kill_agent(running);
        pairs.iter().for_each(exchange_both_ways);
        running = start_agent(&lab, hook, pairs.len());
        assert_eq!(count_attachments(&lab), want, "{hook}");
        pairs.iter().for_each(exchange_both_ways);
        pairs.extend(connect_flows(&lab, &listener));
    }
    for pair in &pairs {
        transfer_both_ways(pair, 300_000);
        let record = running.next_record();
        assert_eq!((&record["outcome"], &record["engine"]), (&"closed".into(), &"packet".into()));
    }
    running.signal(Signal::TERM);
    assert!(running.wait_for_exit().success());
    assert_eq!(count_attachments(&lab), (0, 0), "it takes its programs with it");
}

/// Where there is no tcx, wishing for it is told apart from programs that do not work.
#[test]
fn tcx_without_kernel_support_is_a_configuration_error() {
    let lab = Lab::new();
    if has_tcx() {
        assert_eq!(start_agent(&lab, "tcx", 0).log_count("hook=Tcx"), 1);
        return;
    }
    let file = write_config(&lab, "tcx");
    let run = || Command::new(agent::binary_path()).arg("run").arg("-c").arg(file).output();
    let done = lab.in_proxy(run).unwrap();
    let output = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        !done.status.success() && output.contains("packet.hook: Linux has tcx since 6.6"),
        "{output}"
    );
}

#[test]
fn purging_an_instance_removes_its_filters() {
    let lab = Lab::new();
    let listener = listen(&lab, backend(8001));
    let instance = lab.namespace_names()[1].to_owned();
    let agent = start_agent(&lab, "clsact", 0);
    let _pair = connect_offloaded(&lab, agent::address(), &listener);
    agent.signal(Signal::KILL);
    let drop = ["flows", "purge", "--instance", &instance];
    let ask = || Command::new(agent::binary_path()).args(drop).output().unwrap();
    wait_until("the agent to be dead", || lab.in_proxy(ask).status.success().then_some(()));
    assert_eq!(count_attachments(&lab), (0, 0));
}

/// What others have at an interface stays there.
#[test]
fn filters_of_other_owners_are_kept() {
    let lab = Lab::new();
    run_tc(&lab, &["qdisc", "add", "dev", "to-2002", "clsact"]);
    let filter = ["dev", "to-2002", "ingress", "pref", "1", "handle", "7", "bpf"];
    let words = ["bytecode", "1,6 0 0 0", "flowid", "1:9"];
    run_tc(&lab, &[&["filter", "add"][..], &filter, &words].concat());
    let mut agent = start_agent(&lab, "clsact", 0);
    let listener = listen(&lab, backend(8001));
    let pair = connect_offloaded(&lab, agent::address(), &listener);
    transfer_both_ways(&pair, 300_000);
    assert_eq!(agent.next_record()["engine"], "packet");
    agent.signal(Signal::TERM);
    assert!(agent.wait_for_exit().success());
    assert_eq!(count_attachments(&lab), (0, 0));
    assert!(run_tc(&lab, &["filter", "show", "dev", "to-2002", "ingress"]).contains("handle 0x7"));
}

/// An answer that arrives where the programs are not is for the socket, and the flow stays with it.
#[test]
fn a_flow_whose_answer_no_program_sees_stays_on_splice() {
    let lab = Lab::new();
    let agent = start_agent(&lab, "clsact", 0);
    run_tc(&lab, &["qdisc", "del", "dev", "to-2002", "clsact"]);
    let pair = connect_offloaded(&lab, agent::address(), &listen(&lab, backend(8001)));
    transfer_both_ways(&pair, 300_000);
    assert_eq!(agent.next_record()["engine"], "splice");
    let declined = "snisplit_engine_declined_total{engine=\"packet\",reason=\"requested\"}";
    assert_eq!(agent.metric(&lab, declined), 1.0);
}
