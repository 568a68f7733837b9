//! `engine = "auto"`: which engine a flow gets, that moving it costs no byte, and what `status` and
//! `flows` show of it.

use std::process::Command;
use std::sync::mpsc::sync_channel;
use std::thread;

use rustix::process::Signal;
use serde_json::Value;
use snisplit_tests::agent::binary;
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel;
use snisplit_tests::stream::{Noise, finish, read_all, read_some, write};
use snisplit_tests::wait::until;

const STEP: usize = 64 * 1024;
const STEPS: usize = 1_600;
const BULK: usize = STEPS * STEP;
/// Steps that may be on their way: with what their buffers take they are half of what makes a receiver slow.
const AHEAD: usize = 4;
/// What the receiver says once a MiB, as HTTP/2 opens a window: bulk is no exchange for that.
const GO_ON: &[u8] = b"go on";
const EVERY: usize = 16;
const MOVED: &str = "snisplit_engine_moved_total{engine=\"sockmap\"}";

/// Bulk whose receiver keeps up, however slow the machine: else it might leave the kernel for that.
fn download(flow: &Flow, halfway: impl Fn()) {
    let Flow { client, backend, .. } = flow;
    thread::scope(|scope| {
        let (ahead, taken) = sync_channel(AHEAD);
        scope.spawn(move || {
            let (mut noise, mut step) = (Noise::default(), vec![0; STEP]);
            for _ in 0..STEPS {
                ahead.send(()).unwrap();
                noise.fill(&mut step);
                write(backend, &step);
            }
            finish(backend);
        });
        let (mut noise, mut step) = (Noise::default(), vec![0; STEP]);
        for number in 0..STEPS {
            if number == STEPS / 2 {
                halfway();
            }
            noise.fill(&mut step);
            assert!(read_some(client, STEP) == step, "step {number} has other bytes");
            taken.recv().unwrap();
            if number % EVERY == 0 {
                write(client, GO_ON);
            }
        }
    });
    assert_eq!(read_all(client), b"");
}

/// The client's end, and what it said while it received.
fn end(flow: &Flow) {
    finish(&flow.client);
    assert_eq!(read_all(&flow.backend), GO_ON.repeat(STEPS / EVERY));
}

fn direction(flow: &Flow, which: &str) -> Option<Value> {
    let all = kernel::flows(flow.lab().names()[1]);
    all.into_iter().find(|one| one["direction"] == which)
}

#[test]
fn a_flow_of_few_messages_and_one_of_bulk_stay_on_splice() {
    let flow = Flow::open("auto");
    flow.chat(5);
    download(&flow, || {});
    assert_eq!(direction(&flow, "Up"), None);
    end(&flow);
    let record = flow.agent.record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"splice".into(), &"closed".into()));
}

/// splice, then the kernel, then one direction on splice again; not a byte lost at either passage.
#[test]
fn a_flow_of_small_messages_moves_to_the_kernel_and_bulk_moves_back() {
    let flow = Flow::open("auto");
    let mut said = flow.chat(100);
    let carried = |which| direction(&flow, which).unwrap()["redirected_bytes"].as_u64().unwrap();
    assert_eq!(flow.agent.metric(flow.lab(), MOVED), 1.0);
    assert!(carried("Up") > 0 && carried("Down") > 0);
    said += flow.chat(100);
    let entries = || kernel::entries(flow.agent.pid());
    let before = entries();
    download(&flow, || {
        until("the program to lose sight of bulk", || (entries() == before - 1).then_some(()));
    });
    let down = direction(&flow, "Down").unwrap();
    assert_eq!(down["state"], "Detaching", "{down}");
    let at_most = said + BULK / 2 + (AHEAD + 1) * STEP;
    assert!(down["redirected_bytes"].as_u64().unwrap() <= at_most as u64, "{down}");
    assert_eq!(direction(&flow, "Up").unwrap()["state"], "Redirecting", "judged by itself");
    end(&flow);
    let record = flow.agent.record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"sockmap".into(), &"closed".into()));
    assert_eq!(record["up"], said + STEPS / EVERY * GO_ON.len() + flow.hello, "{record}");
    assert_eq!(record["down"], said + BULK, "{record}");
    until("its entries to be gone", || (entries() == 0).then_some(()));
}

/// Questions and answers as large as these are no bulk, although they come to more than that within a second.
#[test]
fn a_flow_of_larger_messages_by_turns_moves_to_the_kernel_and_stays() {
    const TIMES: usize = 2_000;
    for (question, answer) in [(16_384, 16_384), (500, 30_000), (30_000, 500)] {
        let flow = Flow::open("auto");
        let (mut noise, mut message) = (Noise::default(), vec![0; question.max(answer)]);
        let mut pass = |from, to, bytes| {
            noise.fill(&mut message[..bytes]);
            write(from, &message[..bytes]);
            assert!(read_some(to, bytes) == message[..bytes], "other bytes");
        };
        for _ in 0..TIMES {
            pass(&flow.client, &flow.backend, question);
            pass(&flow.backend, &flow.client, answer);
        }
        for (which, bytes) in [("Up", question), ("Down", answer)] {
            let one = direction(&flow, which).unwrap();
            assert_eq!(one["state"], "Redirecting", "{one}");
            assert!(
                one["redirected_bytes"].as_u64().unwrap() > (TIMES * bytes) as u64 / 2,
                "{one}"
            );
        }
        finish(&flow.client);
        finish(&flow.backend);
        assert_eq!((read_all(&flow.backend), read_all(&flow.client)), (vec![], vec![]));
        let record = flow.agent.record();
        assert_eq!((&record["engine"], &record["outcome"]), (&"sockmap".into(), &"closed".into()));
        assert_eq!(record["up"], TIMES * question + flow.hello, "{record}");
        assert_eq!(record["down"], TIMES * answer, "{record}");
    }
}

fn ask(verb: &str, instance: &str) -> (bool, Value) {
    let mut command = Command::new(binary());
    let done = command.args([verb, "--instance", instance, "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    (done.status.success(), serde_json::from_slice(&done.stdout).unwrap_or(said.into()))
}

#[test]
fn status_and_flows_answer_while_the_agent_hangs() {
    let flow = Flow::open("sockmap");
    let instance = flow.lab().names()[1];
    let said = flow.chat(3);
    flow.agent.signal(Signal::STOP);

    let (runs, status) = ask("status", instance);
    assert!(runs, "{status}");
    assert_eq!(status["agent"]["pid"], flow.agent.pid());
    assert_eq!(status["agent"]["engine"], "sockmap");
    let trial = status["agent"]["sockmap"].as_str().unwrap();
    assert!(trial.starts_with("works: tried on this kernel"), "{trial}");
    let [kernel] = status["kernel"].as_array().unwrap().as_slice() else { panic!("{status}") };
    assert_eq!((&kernel["engine"], &kernel["flows"]), (&"sockmap".into(), &1.into()));
    assert_eq!(kernel["up"], said + flow.hello);

    let (_, flows) = ask("flows", instance);
    let [one] = flows.as_array().unwrap().as_slice() else { panic!("{flows}") };
    assert_eq!(one["client"], flow.client.local_addr().unwrap().to_string());
    assert_eq!((&one["backend"], &one["route"]), (&"10.91.2.2:8001".into(), &"a.test".into()));
    assert_eq!((&one["up"], &one["down"]), (&(said + flow.hello).into(), &said.into()));
    assert_eq!((&one["up_state"], &one["engine"]), (&"spliced".into(), &"sockmap".into()));

    flow.agent.signal(Signal::KILL);
    until("the dead agent to be known as dead", || (!ask("status", instance).0).then_some(()));
}

#[test]
fn status_without_an_agent_says_so() {
    let (runs, status) = ask("status", "sp-nobody");
    assert!(!runs);
    assert_eq!((&status["agent"], &status["kernel"]), (&Value::Null, &serde_json::json!([])));
    let (ok, said) = ask("flows", "sp-nobody");
    assert!(!ok && said.to_string().contains("/sys/fs/bpf/snisplit/sp-nobody"), "{said}");
}
