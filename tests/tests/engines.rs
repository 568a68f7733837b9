//! What every engine must do alike. Each test runs once for each engine.

use std::io::ErrorKind;
use std::process::Command;
use std::thread;
use std::time::Duration;

use snisplit_tests::agent::PORT;
use snisplit_tests::flow::{ENGINES, Flow, WITH_SOCKETS};
use snisplit_tests::lab::Lab;
use snisplit_tests::stream::{Noise, ending, finish, hash_all, read_all, read_some, reset, write};
use snisplit_tests::wait::{pass, until};

fn on_each_engine(test: impl Fn(Flow)) {
    for engine in ENGINES {
        test(Flow::open(engine));
    }
}

const BULK: usize = 200_000_000;

#[test]
fn a_download_of_200_mb_arrives_whole() {
    on_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        let got = thread::scope(|scope| {
            let sent = scope.spawn(|| {
                let hash = Noise::default().send(backend, BULK);
                finish(backend);
                hash
            });
            let got = hash_all(client);
            finish(client);
            assert_eq!(got, (BULK, sent.join().unwrap()));
            got
        });
        assert_eq!(read_all(backend), b"");
        flow.ends(0, got.0, "closed");
    });
}

#[test]
fn an_upload_of_200_mb_arrives_whole() {
    on_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        thread::scope(|scope| {
            let sent = scope.spawn(|| {
                let hash = Noise::default().send(client, BULK);
                finish(client);
                hash
            });
            let got = hash_all(backend);
            finish(backend);
            assert_eq!(got, (BULK, sent.join().unwrap()));
        });
        assert_eq!(read_all(client), b"");
        flow.ends(BULK, 0, "closed");
    });
}

#[test]
fn both_directions_at_once() {
    on_each_engine(|flow| {
        let (ours, theirs) = (&flow.client, &flow.backend);
        let send = |stream| {
            let hash = Noise::default().send(stream, 40_000_000);
            finish(stream);
            (40_000_000, hash)
        };
        thread::scope(|scope| {
            let (up, down) = (scope.spawn(|| send(ours)), scope.spawn(|| send(theirs)));
            let at_backend = scope.spawn(|| hash_all(theirs));
            assert_eq!(hash_all(ours), down.join().unwrap());
            assert_eq!(at_backend.join().unwrap(), up.join().unwrap());
        });
        flow.ends(40_000_000, 40_000_000, "closed");
    });
}

/// nginx, sslh, sniproxy and Traefik return nothing of it by default (notes on peers, §3).
#[test]
fn the_answer_to_a_half_closed_client_arrives_whole() {
    on_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        write(client, b"the last word");
        finish(client);
        assert_eq!(read_all(backend), b"the last word");
        pass(Duration::from_millis(700));
        let sent = Noise::default().send(backend, 300_000);
        finish(backend);
        assert_eq!(hash_all(client), (300_000, sent));
        flow.ends(13, 300_000, "closed");
    });
}

#[test]
fn the_back_end_may_end_first() {
    on_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        write(backend, b"goodbye");
        finish(backend);
        assert_eq!(read_all(client), b"goodbye");
        pass(Duration::from_millis(300));
        write(client, b"and you");
        finish(client);
        assert_eq!(read_all(backend), b"and you");
        flow.ends(7, 7, "closed");
    });
}

#[test]
fn a_reset_reaches_the_back_end_behind_the_bytes_before_it() {
    on_each_engine(|flow| {
        let Flow { client, backend, agent, engine, hello, .. } = flow;
        write(&client, b"last words");
        assert_eq!(read_some(&backend, 10), b"last words");
        reset(client);
        assert_eq!(ending(&backend), (vec![], Err(ErrorKind::ConnectionReset)));
        let record = agent.record();
        assert_eq!(
            (&record["outcome"], &record["up"]),
            (&"client_reset".into(), &(hello + 10).into())
        );
        assert_eq!(record["engine"], engine);
    });
}

#[test]
fn a_reset_reaches_the_client_behind_the_bytes_before_it() {
    on_each_engine(|flow| {
        let Flow { client, backend, agent, .. } = flow;
        write(&backend, b"last words");
        assert_eq!(read_some(&client, 10), b"last words");
        reset(backend);
        assert_eq!(ending(&client), (vec![], Err(ErrorKind::ConnectionReset)));
        assert_eq!(agent.record()["outcome"], "backend_reset");
    });
}

/// After its end of stream nobody reads the client's side any more; its death must still show.
#[test]
fn a_reset_after_a_half_close_is_a_reset() {
    on_each_engine(|flow| {
        let Flow { client, backend, agent, .. } = flow;
        finish(&client);
        assert_eq!(read_all(&backend), b"");
        reset(client);
        // The back end's own side is open; its next word finds the reset.
        until("the reset at the back end", || {
            let sent = std::io::Write::write(&mut &backend, b".");
            sent.is_err().then_some(())
        });
        assert_eq!(agent.record()["outcome"], "client_reset");
    });
}

/// A FIN says that all has been said: a reset behind it takes nothing of that back. Not so where nobody
/// stands between the peers who could have acknowledged it.
#[test]
fn a_reset_behind_an_end_of_stream_takes_nothing_back() {
    WITH_SOCKETS.into_iter().for_each(|engine| {
        let lab = Lab::new();
        // While the back end reads nothing, the agent's sockets must take what comes: little towards the
        // back end, and all the rest from the client. Buffers that tune themselves may stop short of it.
        size_buffers(&lab, "tcp_wmem", 65_536);
        size_buffers(&lab, "tcp_rmem", 8_388_608);
        let flow = Flow::open_in(lab, engine, &[]);
        let sent = vec![7; 1_500_000];
        write(&flow.client, &sent);
        finish(&flow.client);
        until("all of it to be acknowledged", || is_fin_acknowledged(flow.lab()).then_some(()));
        let Flow { client, backend, agent, hello, .. } = flow;
        reset(client);
        assert_eq!(ending(&backend), (sent.clone(), Ok(())));
        let record = agent.record();
        assert_eq!(record["outcome"], "client_reset", "{record}");
        assert_eq!(record["up"], sent.len() + hello, "{record}");
    });
}

/// Gives each new socket of the agent's host buffers of this size, for good.
fn size_buffers(lab: &Lab, which: &str, bytes: u32) {
    let path = format!("/proc/sys/net/ipv4/{which}");
    lab.proxy(|| std::fs::write(path, format!("4096 {bytes} {bytes}"))).unwrap();
}

/// Whether the other side has acknowledged the end of stream of the lab's client.
fn is_fin_acknowledged(lab: &Lab) -> bool {
    let mut ss = Command::new("ss");
    let done = lab.client(|| ss.args(["-tnOH", "state", "fin-wait-2"]).output()).unwrap();
    String::from_utf8_lossy(&done.stdout).contains(&format!(":{PORT}"))
}

#[test]
fn bytes_that_come_one_by_one_stay_in_order() {
    on_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        let text: Vec<u8> = (0..2000_u32).flat_map(|n| [(n >> 8) as u8, n as u8]).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                text.chunks(1).for_each(|byte| write(client, byte));
                finish(client);
            });
            scope.spawn(|| {
                text.chunks(1).for_each(|byte| write(backend, byte));
                finish(backend);
            });
            let at_client = scope.spawn(|| read_all(client));
            assert_eq!(read_all(backend), text);
            assert_eq!(at_client.join().unwrap(), text);
        });
        flow.ends(text.len(), text.len(), "closed");
    });
}

/// "Idle flows hold no pipe": fifty flows that have said something both ways and wait. Two pipes of
/// two descriptors each are what one busy flow needs; the pool hands the same ones on.
#[test]
fn idle_flows_hold_no_pipe() {
    let flow = Flow::open("splice");
    let others: Vec<_> = (0..50).map(|_| flow.another()).collect();
    for (client, backend) in &others {
        write(client, b"ping");
        assert_eq!(read_some(backend, 4), b"ping");
        write(backend, b"pong");
        assert_eq!(read_some(client, 4), b"pong");
    }
    let pipes = flow.agent.descriptors("pipe:");
    assert!(pipes <= 16, "{pipes} descriptors of pipes for {} idle flows", others.len());
}

/// A flow whose client has ended its side waits for the answer without burning CPU.
#[test]
fn a_half_closed_flow_waits_quietly() {
    on_each_engine(|flow| {
        let Flow { client, backend, agent, .. } = &flow;
        finish(client);
        assert_eq!(read_all(backend), b"");
        let before = agent.cpu();
        pass(Duration::from_secs(1));
        let spent = agent.cpu() - before;
        assert!(spent < Duration::from_millis(200), "{spent:?} of CPU in a second of waiting");
        finish(backend);
        assert_eq!(read_all(client), b"");
        flow.ends(0, 0, "closed");
    });
}
