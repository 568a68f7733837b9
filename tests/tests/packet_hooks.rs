//! Attach points of the packet engine's programs at an interface: tcx, and `clsact` for kernels before 6.6.

//@ engines: named

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::{kernel_at_least, pin_dir};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{listen, read_exact, write};
use snisplit_tests::testbed::Peers;
use snisplit_tests::wait::wait_until;

/// Writes a configuration with this attach point.
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

/// Programs of the packet engine at all interfaces of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attachments {
    clsact: usize,
    tcx: usize,
}

const NO_ATTACHMENTS: Attachments = Attachments { clsact: 0, tcx: 0 };

/// Counts filters at `clsact` by bpftool, and links at tcx by their pins, because not every bpftool shows them.
fn count_attachments(lab: &Lab) -> Attachments {
    let shown = lab.in_proxy(|| Command::new("bpftool").args(["net", "show"]).output()).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let filters = shown.lines().filter(|line| line.contains("clsact/") && line.contains("sni_"));
    let pins = fs::read_dir(pin_dir(lab.namespace_names()[1]));
    let names = pins.into_iter().flatten().map(|pin| pin.unwrap().file_name());
    let is_link = |name: &str| name.starts_with("in_") || name.starts_with("out_");
    let links = names.filter(|name| is_link(name.to_str().unwrap()));
    Attachments { clsact: filters.count(), tcx: links.count() }
}

fn has_tcx() -> bool {
    kernel_at_least(6, 6)
}

fn exchange_both_ways(Peers { client, backend }: &Peers) {
    write(client, b"up");
    assert_eq!(read_exact(backend, 2), b"up");
    write(backend, b"down");
    assert_eq!(read_exact(client, 4), b"down");
}

/// Starts an agent, which has to adopt so many flows.
fn start_agent(lab: &Lab, hook: &str, adopted: usize) -> Agent {
    let agent = Agent::start_with_config(lab, &write_config(lab, hook), &[]);
    let message = "flows adopted flows=";
    assert_eq!(agent.log_count(message), usize::from(adopted > 0), "{}", agent.log());
    let message = format!("{message}{adopted}");
    assert_eq!(agent.log_count(&message), usize::from(adopted > 0), "{}", agent.log());
    agent
}

fn kill_agent(agent: Agent) {
    agent.signal(Signal::KILL);
    drop(agent.allow_warnings());
}

fn connect(lab: &Lab, listener: &TcpListener) -> Peers {
    Peers::connect_offloaded(lab, agent::address(), listener)
}

fn run_tc(lab: &Lab, args: &[&str]) -> String {
    let done = lab.in_proxy(|| Command::new("tc").args(args).output()).unwrap();
    assert!(done.status.success(), "{args:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn flows_survive_their_agent_at_either_hook() {
    let lab = Lab::new();
    let listener = listen(&lab, backend(8001));
    let agent = start_agent(&lab, "clsact", 0);
    let at_clsact = count_attachments(&lab);
    assert!(at_clsact.clsact >= 4 && at_clsact.tcx == 0, "{at_clsact:?}");
    let at_tcx = Attachments { clsact: 0, tcx: at_clsact.clsact };
    let mut flows: Vec<_> = (0..3).map(|_| connect(&lab, &listener)).collect();
    let hooks = [("clsact", at_clsact), ("tcx", at_tcx), ("clsact", at_clsact)];
    let mut running = agent;
    for (hook, expected) in hooks.into_iter().filter(|(hook, _)| *hook == "clsact" || has_tcx()) {
        kill_agent(running);
        flows.iter().for_each(exchange_both_ways);
        running = start_agent(&lab, hook, flows.len());
        assert_eq!(count_attachments(&lab), expected, "{hook}");
        flows.iter().for_each(exchange_both_ways);
        flows.extend((0..3).map(|_| connect(&lab, &listener)));
    }
    for flow in &flows {
        flow.transfer_both_ways(300_000);
        let record = running.next_record();
        assert_eq!((&record["outcome"], &record["engine"]), (&"closed".into(), &"packet".into()));
    }
    running.signal(Signal::TERM);
    assert!(running.wait_for_exit().success());
    assert_eq!(
        count_attachments(&lab),
        NO_ATTACHMENTS,
        "an agent that stops detaches its programs"
    );
}

/// Without tcx in the kernel, the error names the key `packet.hook`, and not the programs.
#[test]
fn tcx_attaches_or_is_a_configuration_error() {
    let lab = Lab::new();
    if has_tcx() {
        assert_eq!(start_agent(&lab, "tcx", 0).log_count("hook=tcx"), 1);
        return;
    }
    let file = write_config(&lab, "tcx");
    let run = || Command::new(agent::binary_path()).arg("run").arg("-c").arg(file).output();
    let done = lab.in_proxy(run).unwrap();
    let output = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        !done.status.success() && output.contains("packet.hook: tcx needs Linux 6.6"),
        "{output}"
    );
}

#[test]
fn purging_an_instance_removes_its_filters() {
    let lab = Lab::new();
    let listener = listen(&lab, backend(8001));
    let instance = lab.namespace_names()[1].to_owned();
    let agent = start_agent(&lab, "clsact", 0);
    let _flow = connect(&lab, &listener);
    assert_ne!(count_attachments(&lab), NO_ATTACHMENTS);
    agent.signal(Signal::KILL);
    let purge = ["flows", "purge", "--instance", &instance];
    let run = || Command::new(agent::binary_path()).args(purge).output().unwrap();
    wait_until("the agent to be dead", || lab.in_proxy(run).status.success().then_some(()));
    assert_eq!(count_attachments(&lab), NO_ATTACHMENTS);
}

#[test]
fn filters_of_other_owners_are_kept() {
    let lab = Lab::new();
    run_tc(&lab, &["qdisc", "add", "dev", "to-2002", "clsact"]);
    let filter = ["dev", "to-2002", "ingress", "pref", "1", "handle", "7", "bpf"];
    let program = ["bytecode", "1,6 0 0 0", "flowid", "1:9"];
    run_tc(&lab, &[&["filter", "add"][..], &filter, &program].concat());
    let mut agent = start_agent(&lab, "clsact", 0);
    let listener = listen(&lab, backend(8001));
    connect(&lab, &listener).transfer_both_ways(300_000);
    assert_eq!(agent.next_record()["engine"], "packet");
    agent.signal(Signal::TERM);
    assert!(agent.wait_for_exit().success());
    assert_eq!(count_attachments(&lab), NO_ATTACHMENTS);
    assert!(run_tc(&lab, &["filter", "show", "dev", "to-2002", "ingress"]).contains("handle 0x7"));
}

/// The answer arrives at an interface without the programs, so the agent's socket receives it.
#[test]
fn a_flow_whose_answer_no_program_sees_stays_on_splice() {
    let lab = Lab::new();
    let agent = start_agent(&lab, "clsact", 0);
    run_tc(&lab, &["qdisc", "del", "dev", "to-2002", "clsact"]);
    connect(&lab, &listen(&lab, backend(8001))).transfer_both_ways(300_000);
    assert_eq!(agent.next_record()["engine"], "splice");
    let declined = "snisplit_engine_declined_total{engine=\"packet\",reason=\"requested\"}";
    assert_eq!(agent.metric(&lab, declined), 1.0);
}
