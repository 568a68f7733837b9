//! `engine = "auto"`: which engine a flow gets, that moving it costs no byte, and what `status` and
//! `flows` show of it.

//@ engines: named

use std::process::Command;
use std::sync::mpsc::sync_channel;
use std::thread;

use rustix::process::Signal;
use serde_json::Value;
use snisplit_tests::agent::binary_path;
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel;
use snisplit_tests::stream::{RandomStream, read_all, read_exact, shutdown_write, write};
use snisplit_tests::wait::wait_until;

const STEP: usize = 64 * 1024;
const STEPS: usize = 1_600;
const BULK: usize = STEPS * STEP;
/// Steps that may be on their way: with what their buffers take they are half of what makes a receiver slow.
const MAX_STEPS_IN_FLIGHT: usize = 4;
/// What the receiver says once a MiB, as HTTP/2 opens a window: bulk is no exchange for that.
const WINDOW_UPDATE: &[u8] = b"go on";
const STEPS_PER_UPDATE: usize = 16;
const HANDOVERS: &str = "snisplit_engine_handovers_total{engine=\"sockmap\"}";

/// Bulk whose receiver keeps up, however slow the machine: else it might leave the kernel for that.
fn download_without_backlog(flow: &Flow, at_half: impl Fn()) {
    let Flow { client, backend, .. } = flow;
    thread::scope(|scope| {
        let (in_flight, received) = sync_channel(MAX_STEPS_IN_FLIGHT);
        scope.spawn(move || {
            let (mut noise, mut step) = (RandomStream::default(), vec![0; STEP]);
            for _ in 0..STEPS {
                in_flight.send(()).unwrap();
                noise.fill(&mut step);
                write(backend, &step);
            }
            shutdown_write(backend);
        });
        let (mut noise, mut step) = (RandomStream::default(), vec![0; STEP]);
        for number in 0..STEPS {
            if number == STEPS / 2 {
                at_half();
            }
            noise.fill(&mut step);
            assert!(read_exact(client, STEP) == step, "step {number} has other bytes");
            received.recv().unwrap();
            if number % STEPS_PER_UPDATE == 0 {
                write(client, WINDOW_UPDATE);
            }
        }
    });
    assert_eq!(read_all(client), b"");
}

/// The client's end, and what it said while it received.
fn end_and_check_updates(flow: &Flow) {
    shutdown_write(&flow.client);
    assert_eq!(read_all(&flow.backend), WINDOW_UPDATE.repeat(STEPS / STEPS_PER_UPDATE));
}

fn flow_entry(flow: &Flow, which: &str) -> Option<Value> {
    let all = kernel::sockmap_flow_entries(flow.lab().namespace_names()[1]);
    all.into_iter().find(|one| one["direction"] == which)
}

#[test]
fn a_flow_of_few_messages_and_one_of_bulk_stay_on_splice() {
    let flow = Flow::open("auto");
    flow.exchange_messages(5);
    download_without_backlog(&flow, || {});
    assert_eq!(flow_entry(&flow, "Up"), None);
    end_and_check_updates(&flow);
    let record = flow.agent.next_record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"splice".into(), &"closed".into()));
}

/// splice, then the kernel, then one direction on splice again; not a byte lost at either passage.
#[test]
fn small_messages_move_to_sockmap_and_bulk_detaches() {
    let flow = Flow::open("auto");
    let mut exchanged = flow.exchange_messages(100);
    let redirected =
        |which| flow_entry(&flow, which).unwrap()["redirected_bytes"].as_u64().unwrap();
    assert_eq!(flow.agent.metric(flow.lab(), HANDOVERS), 1.0);
    assert!(redirected("Up") > 0 && redirected("Down") > 0);
    exchanged += flow.exchange_messages(100);
    let entries = || kernel::sockmap_entry_count(flow.agent.pid());
    let before = entries();
    download_without_backlog(&flow, || {
        wait_until("the program to lose sight of bulk", || (entries() == before - 1).then_some(()));
    });
    let down = flow_entry(&flow, "Down").unwrap();
    assert_eq!(down["state"], "Detaching", "{down}");
    let at_most = exchanged + BULK / 2 + (MAX_STEPS_IN_FLIGHT + 1) * STEP;
    assert!(down["redirected_bytes"].as_u64().unwrap() <= at_most as u64, "{down}");
    assert_eq!(flow_entry(&flow, "Up").unwrap()["state"], "Redirecting", "judged by itself");
    end_and_check_updates(&flow);
    let record = flow.agent.next_record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"sockmap".into(), &"closed".into()));
    assert_eq!(
        record["bytes_up"],
        exchanged + STEPS / STEPS_PER_UPDATE * WINDOW_UPDATE.len() + flow.hello_len,
        "{record}"
    );
    assert_eq!(record["bytes_down"], exchanged + BULK, "{record}");
    wait_until("its entries to be gone", || (entries() == 0).then_some(()));
}

/// Questions and answers as large as these are no bulk, although they come to more than that within a second.
#[test]
fn a_request_response_flow_moves_to_sockmap_and_stays() {
    const TIMES: usize = 2_000;
    for (question, answer) in [(16_384, 16_384), (500, 30_000), (30_000, 500)] {
        let flow = Flow::open("auto");
        let (mut noise, mut message) = (RandomStream::default(), vec![0; question.max(answer)]);
        let mut pass = |from, to, bytes| {
            noise.fill(&mut message[..bytes]);
            write(from, &message[..bytes]);
            assert!(read_exact(to, bytes) == message[..bytes], "other bytes");
        };
        for _ in 0..TIMES {
            pass(&flow.client, &flow.backend, question);
            pass(&flow.backend, &flow.client, answer);
        }
        for (which, bytes) in [("Up", question), ("Down", answer)] {
            let one = flow_entry(&flow, which).unwrap();
            assert_eq!(one["state"], "Redirecting", "{one}");
            assert!(
                one["redirected_bytes"].as_u64().unwrap() > (TIMES * bytes) as u64 / 2,
                "{one}"
            );
        }
        shutdown_write(&flow.client);
        shutdown_write(&flow.backend);
        assert_eq!((read_all(&flow.backend), read_all(&flow.client)), (vec![], vec![]));
        let record = flow.agent.next_record();
        assert_eq!((&record["engine"], &record["outcome"]), (&"sockmap".into(), &"closed".into()));
        assert_eq!(record["bytes_up"], TIMES * question + flow.hello_len, "{record}");
        assert_eq!(record["bytes_down"], TIMES * answer, "{record}");
    }
}

fn run_json(verb: &str, instance: &str) -> (bool, Value) {
    let mut command = Command::new(binary_path());
    let done = command.args([verb, "--instance", instance, "--output", "json"]).output().unwrap();
    let output = String::from_utf8_lossy(&done.stderr).into_owned();
    (done.status.success(), serde_json::from_slice(&done.stdout).unwrap_or(output.into()))
}

#[test]
fn status_and_flows_answer_while_the_agent_hangs() {
    let flow = Flow::open("sockmap");
    let instance = flow.lab().namespace_names()[1];
    let exchanged = flow.exchange_messages(3);
    flow.agent.signal(Signal::STOP);

    let (runs, status) = run_json("status", instance);
    assert!(runs, "{status}");
    assert_eq!(status["agent"]["pid"], flow.agent.pid());
    assert_eq!(status["agent"]["engine"], "sockmap");
    let trial = status["agent"]["sockmap"].as_str().unwrap();
    assert!(trial.starts_with("works: tried on this kernel"), "{trial}");
    let [kernel] = status["kernel"].as_array().unwrap().as_slice() else { panic!("{status}") };
    assert_eq!((&kernel["engine"], &kernel["flows"]), (&"sockmap".into(), &1.into()));
    assert_eq!(kernel["up"], exchanged + flow.hello_len);

    let (_, flows) = run_json("flows", instance);
    let [one] = flows.as_array().unwrap().as_slice() else { panic!("{flows}") };
    assert_eq!(one["client"], flow.client.local_addr().unwrap().to_string());
    assert_eq!((&one["backend"], &one["route"]), (&"10.91.2.2:8001".into(), &"a.test".into()));
    assert_eq!(
        (&one["up"], &one["down"]),
        (&(exchanged + flow.hello_len).into(), &exchanged.into())
    );
    assert_eq!((&one["up_state"], &one["engine"]), (&"redirecting".into(), &"sockmap".into()));

    flow.agent.signal(Signal::KILL);
    wait_until("the dead agent to be known as dead", || {
        (!run_json("status", instance).0).then_some(())
    });
}

#[test]
fn status_without_an_agent_is_an_error() {
    let (runs, status) = run_json("status", "sp-nobody");
    assert!(!runs);
    assert_eq!((&status["agent"], &status["kernel"]), (&Value::Null, &serde_json::json!([])));
    let (ok, output) = run_json("flows", "sp-nobody");
    assert!(!ok && output.to_string().contains("/sys/fs/bpf/snisplit/sp-nobody"), "{output}");
}
