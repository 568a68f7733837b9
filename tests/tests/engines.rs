//! Behaviour that all engines share. Each test runs once for each engine.

//@ engines: named

use std::io::ErrorKind;
use std::process::Command;
use std::thread;
use std::time::Duration;

use snisplit_tests::agent::PORT;
use snisplit_tests::flow::{ENGINES, Flow, SOCKET_ENGINES};
use snisplit_tests::kernel::bpftool;
use snisplit_tests::lab::Lab;
use snisplit_tests::stream::{
    RandomStream, close_with_reset, read_all, read_all_hashed, read_exact, read_to_end_or_error,
    shutdown_write, write,
};
use snisplit_tests::testbed::Peers;
use snisplit_tests::wait::{sleep_for, wait_until};

fn for_each_engine(test: impl Fn(Flow)) {
    for engine in ENGINES {
        test(Flow::open(engine));
    }
}

const BULK: usize = 200_000_000;

#[test]
fn a_download_of_200_mb_arrives_whole() {
    for_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        let got = thread::scope(|scope| {
            let sent = scope.spawn(|| {
                let hash = RandomStream::default().send(backend, BULK);
                shutdown_write(backend);
                hash
            });
            let got = read_all_hashed(client);
            shutdown_write(client);
            assert_eq!(got, (BULK, sent.join().unwrap()));
            got
        });
        assert_eq!(read_all(backend), b"");
        flow.assert_record(0, got.0, "closed");
    });
}

#[test]
fn an_upload_of_200_mb_arrives_whole() {
    for_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        thread::scope(|scope| {
            let sent = scope.spawn(|| {
                let hash = RandomStream::default().send(client, BULK);
                shutdown_write(client);
                hash
            });
            let got = read_all_hashed(backend);
            shutdown_write(backend);
            assert_eq!(got, (BULK, sent.join().unwrap()));
        });
        assert_eq!(read_all(client), b"");
        flow.assert_record(BULK, 0, "closed");
    });
}

#[test]
fn both_directions_at_once_arrive_whole() {
    for_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        let send = |stream| {
            let hash = RandomStream::default().send(stream, 40_000_000);
            shutdown_write(stream);
            (40_000_000, hash)
        };
        thread::scope(|scope| {
            let (up, down) = (scope.spawn(|| send(client)), scope.spawn(|| send(backend)));
            let at_backend = scope.spawn(|| read_all_hashed(backend));
            assert_eq!(read_all_hashed(client), down.join().unwrap());
            assert_eq!(at_backend.join().unwrap(), up.join().unwrap());
        });
        flow.assert_record(40_000_000, 40_000_000, "closed");
    });
}

/// nginx, sslh, sniproxy and Traefik return nothing of such an answer by default.
#[test]
fn the_answer_to_a_half_closed_client_arrives_whole() {
    for_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        write(client, b"the last word");
        shutdown_write(client);
        assert_eq!(read_all(backend), b"the last word");
        sleep_for(Duration::from_millis(700));
        let sent = RandomStream::default().send(backend, 300_000);
        shutdown_write(backend);
        assert_eq!(read_all_hashed(client), (300_000, sent));
        flow.assert_record(13, 300_000, "closed");
    });
}

#[test]
fn the_backend_may_close_first() {
    for_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        write(backend, b"goodbye");
        shutdown_write(backend);
        assert_eq!(read_all(client), b"goodbye");
        sleep_for(Duration::from_millis(300));
        write(client, b"and you");
        shutdown_write(client);
        assert_eq!(read_all(backend), b"and you");
        flow.assert_record(7, 7, "closed");
    });
}

#[test]
fn a_client_reset_reaches_the_backend_after_the_bytes() {
    for_each_engine(|flow| {
        let Flow { client, backend, agent, engine, hello_len: hello, .. } = flow;
        write(&client, b"last words");
        assert_eq!(read_exact(&backend, 10), b"last words");
        close_with_reset(client);
        assert_eq!(read_to_end_or_error(&backend), (vec![], Err(ErrorKind::ConnectionReset)));
        let record = agent.next_record();
        assert_eq!(
            (&record["outcome"], &record["bytes_up"]),
            (&"client_reset".into(), &(hello + 10).into())
        );
        assert_eq!(record["engine"], engine);
    });
}

#[test]
fn a_backend_reset_reaches_the_client_after_the_bytes() {
    for_each_engine(|flow| {
        let Flow { client, backend, agent, .. } = flow;
        write(&backend, b"last words");
        assert_eq!(read_exact(&client, 10), b"last words");
        close_with_reset(backend);
        assert_eq!(read_to_end_or_error(&client), (vec![], Err(ErrorKind::ConnectionReset)));
        assert_eq!(agent.next_record()["outcome"], "backend_reset");
    });
}

/// Behind the client's end of stream, the agent reads nothing from the client. It must notice a reset nevertheless.
#[test]
fn a_reset_after_a_half_close_is_a_reset() {
    for_each_engine(|flow| {
        let Flow { client, backend, agent, .. } = flow;
        shutdown_write(&client);
        assert_eq!(read_all(&backend), b"");
        close_with_reset(client);
        // The back end may still send; its next bytes meet the reset.
        wait_until("the reset at the back end", || {
            let sent = std::io::Write::write(&mut &backend, b".");
            sent.is_err().then_some(())
        });
        assert_eq!(agent.next_record()["outcome"], "client_reset");
    });
}

/// The agent's socket has acknowledged the client's bytes and its FIN, so it delivers all of them although the client
/// resets. The packet engine has no socket that acknowledges, so the test leaves it out.
#[test]
fn a_reset_after_an_acknowledged_fin_loses_no_bytes() {
    SOCKET_ENGINES.into_iter().for_each(|engine| {
        let lab = Lab::new();
        // While the back end reads nothing, the agent's sockets have to hold everything: a little in the send buffer,
        // and the rest in the receive buffer. Auto-tuned buffers may be too small for that.
        set_socket_buffers(&lab, "tcp_wmem", 65_536);
        set_socket_buffers(&lab, "tcp_rmem", 8_388_608);
        let flow = Flow::open_in_lab(lab, engine, &[]);
        let sent = vec![7; 1_500_000];
        write(&flow.client, &sent);
        shutdown_write(&flow.client);
        wait_until("an acknowledged FIN", || is_fin_acknowledged(flow.lab()).then_some(()));
        let Flow { client, backend, agent, hello_len: hello, .. } = flow;
        close_with_reset(client);
        assert_eq!(read_to_end_or_error(&backend), (sent.clone(), Ok(())));
        let record = agent.next_record();
        assert_eq!(record["outcome"], "client_reset", "{record}");
        assert_eq!(record["bytes_up"], sent.len() + hello, "{record}");
    });
}

/// Gives new sockets of the agent's host buffers of this fixed size, in bytes.
fn set_socket_buffers(lab: &Lab, which: &str, bytes: u32) {
    let path = format!("/proc/sys/net/ipv4/{which}");
    lab.in_proxy(|| std::fs::write(path, format!("4096 {bytes} {bytes}"))).unwrap();
}

/// Whether the agent has acknowledged the client's FIN.
fn is_fin_acknowledged(lab: &Lab) -> bool {
    let mut ss = Command::new("ss");
    let done = lab.in_client(|| ss.args(["-tnOH", "state", "fin-wait-2"]).output()).unwrap();
    String::from_utf8_lossy(&done.stdout).contains(&format!(":{PORT}"))
}

#[test]
fn single_bytes_stay_in_order() {
    for_each_engine(|flow| {
        let Flow { client, backend, .. } = &flow;
        let text: Vec<u8> = (0..2000_u32).flat_map(|n| [(n >> 8) as u8, n as u8]).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                text.chunks(1).for_each(|byte| write(client, byte));
                shutdown_write(client);
            });
            scope.spawn(|| {
                text.chunks(1).for_each(|byte| write(backend, byte));
                shutdown_write(backend);
            });
            let at_client = scope.spawn(|| read_all(client));
            assert_eq!(read_all(backend), text);
            assert_eq!(at_client.join().unwrap(), text);
        });
        flow.assert_record(text.len(), text.len(), "closed");
    });
}

/// 50 flows have transferred in both directions and then wait. A busy flow needs two pipes of two descriptors each, and
/// returns them to a pool when it has no bytes. Small messages are copied without a pipe, so the messages are large.
#[test]
fn idle_flows_hold_no_pipe() {
    static MESSAGE: [u8; 64 * 1024] = [7; 64 * 1024];
    let flow = Flow::open("splice");
    let others: Vec<_> = (0..50).map(|_| flow.connect_another()).collect();
    for Peers { client, backend } in &others {
        for (from, to) in [(client, backend), (backend, client)].repeat(3) {
            write(from, &MESSAGE);
            assert!(read_exact(to, MESSAGE.len()) == MESSAGE);
        }
    }
    let pipes = flow.agent.open_descriptors("pipe:");
    assert!(pipes <= 16, "{pipes} descriptors of pipes for {} idle flows", others.len());
}

#[test]
fn a_waiting_half_closed_flow_uses_no_cpu() {
    for_each_engine(|flow| {
        let Flow { client, backend, agent, .. } = &flow;
        shutdown_write(client);
        assert_eq!(read_all(backend), b"");
        let before = agent.cpu_time();
        sleep_for(Duration::from_secs(1));
        let spent = agent.cpu_time() - before;
        assert!(spent < Duration::from_millis(200), "{spent:?} of CPU time in a second");
        shutdown_write(backend);
        assert_eq!(read_all(client), b"");
        flow.assert_record(0, 0, "closed");
    });
}

/// The agent cannot continue a flow without its entries. It resets both peers, and records an error of its own host.
#[test]
fn a_lost_flow_entry_is_a_local_error() {
    let flow = Flow::open_with("sockmap", &["--instance", "sp-lost-entry"]);
    remove_all_entries("/sys/fs/bpf/snisplit/sp-lost-entry/flows");
    let Flow { client, backend, agent, .. } = flow;
    shutdown_write(&client);
    for peer in [&client, &backend] {
        assert_eq!(read_to_end_or_error(peer), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    assert_eq!(agent.next_record()["outcome"], "local_error");
}

/// Removes every entry of a pinned map.
fn remove_all_entries(path: &str) {
    let dump = bpftool(&["map", "dump", "pinned", path]);
    for entry in dump.as_array().unwrap() {
        let key = entry["key"].as_array().unwrap().iter().map(|byte| byte.as_str().unwrap());
        let delete = ["map", "delete", "pinned", path, "key"].into_iter().chain(key);
        bpftool(&delete.collect::<Vec<_>>());
    }
}
