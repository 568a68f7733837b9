//! A flow that has outlived its beginnings is carried on in another task and on another thread. It ends as one
//! that has not, and loses nothing on the way.

use std::io::ErrorKind;

use rustix::process::Signal;
use snisplit_tests::desk::is_where_it_was_accepted;
use snisplit_tests::flow::{ENGINES, Flow};
use snisplit_tests::stream::{Noise, ending, finish, hash_all, read_all, read_some, reset, write};
use snisplit_tests::wait::until;

/// More than the 64 of the beginnings.
const MESSAGES: usize = 50;

/// A flow that has said something for long, on each engine, and the bytes each way of that.
fn on_each_engine(flags: &[&str], test: impl Fn(Flow, usize)) {
    for engine in ENGINES {
        let flow = Flow::open_with(engine, flags);
        let said = flow.chat(MESSAGES);
        test(flow, said);
    }
}

#[test]
fn each_side_may_end_first() {
    on_each_engine(&[], |flow, said| {
        let Flow { client, backend, .. } = &flow;
        finish(client);
        assert_eq!(read_all(backend), b"");
        let sent = Noise::default().send(backend, 300_000);
        finish(backend);
        assert_eq!(hash_all(client), (300_000, sent));
        flow.ends(said, said + 300_000, "closed");
    });
    on_each_engine(&[], |flow, said| {
        let Flow { client, backend, .. } = &flow;
        finish(backend);
        assert_eq!(read_all(client), b"");
        write(client, b"and you");
        finish(client);
        assert_eq!(read_all(backend), b"and you");
        flow.ends(said + 7, said, "closed");
    });
}

#[test]
fn a_reset_reaches_the_other_side() {
    on_each_engine(&[], |flow, said| {
        let Flow { client, backend, agent, hello, .. } = flow;
        reset(client);
        assert_eq!(ending(&backend), (vec![], Err(ErrorKind::ConnectionReset)));
        let record = agent.record();
        assert_eq!(record["outcome"], "client_reset", "{record}");
        assert_eq!(record["up"], hello + said, "{record}");
    });
    on_each_engine(&[], |flow, said| {
        let Flow { client, backend, agent, answer, .. } = flow;
        reset(backend);
        assert_eq!(ending(&client), (vec![], Err(ErrorKind::ConnectionReset)));
        let record = agent.record();
        assert_eq!(record["outcome"], "backend_reset", "{record}");
        assert_eq!(record["down"], answer + said, "{record}");
    });
}

#[test]
fn an_idle_one_is_reset() {
    on_each_engine(&["--idle-timeout", "1s"], |flow, said| {
        for side in [&flow.client, &flow.backend] {
            assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
        }
        flow.ends(said, said, "idle");
    });
}

#[test]
fn one_that_is_told_to_end_is_waited_for_and_then_cut() {
    on_each_engine(&["--drain", "1s"], |mut flow, said| {
        flow.agent.signal(Signal::TERM);
        until("it to drain", || flow.agent.log().contains("stopping").then_some(()));
        write(&flow.client, b"still here");
        assert_eq!(read_some(&flow.backend, 10), b"still here");
        for side in [&flow.client, &flow.backend] {
            assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
        }
        flow.ends(said + 10, said, "cut");
        assert!(flow.agent.exit().success());
    });
}

/// A young flow is on the thread that accepted it, an old one on those that serve all.
#[test]
fn what_lasts_leaves_the_thread_that_accepted_it() {
    for engine in ["copy", "splice"] {
        let Flow { agent, .. } = &Flow::open(engine);
        assert_eq!(is_where_it_was_accepted(agent), Some(true));
    }
    for engine in ["copy", "splice"] {
        let flow = Flow::open(engine);
        flow.chat(MESSAGES);
        let has_left = || (is_where_it_was_accepted(&flow.agent) == Some(false)).then_some(());
        until("the flow to have left", has_left);
    }
}
