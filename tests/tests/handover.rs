//! A flow that has outlived its beginnings is carried on in another task and on another thread. It ends as one
//! that has not, and loses nothing on the way.

//@ engines: named

use std::io::ErrorKind;

use rustix::process::Signal;
use snisplit_tests::acceptor_threads::is_on_acceptor_thread;
use snisplit_tests::flow::{ENGINES, Flow};
use snisplit_tests::stream::{
    RandomStream, close_with_reset, read_all, read_all_hashed, read_exact, read_to_end_or_error,
    shutdown_write, write,
};
use snisplit_tests::wait::wait_until;

/// More than the 64 of the beginnings.
const MESSAGES: usize = 50;

/// A flow that has said something for long, on each engine, and the bytes each way of that.
fn for_each_engine(flags: &[&str], test: impl Fn(Flow, usize)) {
    for engine in ENGINES {
        let flow = Flow::open_with(engine, flags);
        let exchanged = flow.exchange_messages(MESSAGES);
        test(flow, exchanged);
    }
}

#[test]
fn either_side_may_close_first() {
    for_each_engine(&[], |flow, exchanged| {
        let Flow { client, backend, .. } = &flow;
        shutdown_write(client);
        assert_eq!(read_all(backend), b"");
        let sent = RandomStream::default().send(backend, 300_000);
        shutdown_write(backend);
        assert_eq!(read_all_hashed(client), (300_000, sent));
        flow.assert_record(exchanged, exchanged + 300_000, "closed");
    });
    for_each_engine(&[], |flow, exchanged| {
        let Flow { client, backend, .. } = &flow;
        shutdown_write(backend);
        assert_eq!(read_all(client), b"");
        write(client, b"and you");
        shutdown_write(client);
        assert_eq!(read_all(backend), b"and you");
        flow.assert_record(exchanged + 7, exchanged, "closed");
    });
}

#[test]
fn a_reset_reaches_the_other_side() {
    for_each_engine(&[], |flow, exchanged| {
        let Flow { client, backend, agent, hello_len: hello, .. } = flow;
        close_with_reset(client);
        assert_eq!(read_to_end_or_error(&backend), (vec![], Err(ErrorKind::ConnectionReset)));
        let record = agent.next_record();
        assert_eq!(record["outcome"], "client_reset", "{record}");
        assert_eq!(record["bytes_up"], hello + exchanged, "{record}");
    });
    for_each_engine(&[], |flow, exchanged| {
        let Flow { client, backend, agent, answer_len: answer, .. } = flow;
        close_with_reset(backend);
        assert_eq!(read_to_end_or_error(&client), (vec![], Err(ErrorKind::ConnectionReset)));
        let record = agent.next_record();
        assert_eq!(record["outcome"], "backend_reset", "{record}");
        assert_eq!(record["bytes_down"], answer + exchanged, "{record}");
    });
}

#[test]
fn an_idle_flow_is_reset() {
    for_each_engine(&["--idle-timeout", "1s"], |flow, exchanged| {
        for side in [&flow.client, &flow.backend] {
            assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
        }
        flow.assert_record(exchanged, exchanged, "idle_timeout");
    });
}

#[test]
fn a_flow_is_reset_after_the_drain_timeout() {
    for_each_engine(&["--drain-timeout", "1s"], |mut flow, exchanged| {
        flow.agent.signal(Signal::TERM);
        wait_until("it to drain", || flow.agent.log().contains("stopping").then_some(()));
        write(&flow.client, b"still here");
        assert_eq!(read_exact(&flow.backend, 10), b"still here");
        for side in [&flow.client, &flow.backend] {
            assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
        }
        flow.assert_record(exchanged + 10, exchanged, "shutdown");
        assert!(flow.agent.wait_for_exit().success());
    });
}

/// A young flow is on the thread that accepted it, an old one on those that serve all.
#[test]
fn a_handed_over_flow_leaves_the_acceptor_thread() {
    for engine in ["copy", "splice"] {
        let Flow { agent, .. } = &Flow::open(engine);
        assert_eq!(is_on_acceptor_thread(agent), Some(true));
    }
    for engine in ["copy", "splice"] {
        let flow = Flow::open(engine);
        flow.exchange_messages(MESSAGES);
        let has_left = || (is_on_acceptor_thread(&flow.agent) == Some(false)).then_some(());
        wait_until("the flow to have left", has_left);
    }
}
