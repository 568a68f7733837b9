//! A retransmission that begins with bytes that have been forwarded already. The acknowledgement of the first bytes and
//! the bytes behind them are lost, and Linux sends both again in one segment (`tcp_retrans_try_collapse`).

//@ engines: named

use snisplit_tests::flow::{Flow, SOCKET_ENGINES};
use snisplit_tests::kernel::SockmapCounter;
use snisplit_tests::stream::{read_all, read_exact, shutdown_write, write};
use snisplit_tests::wait::wait_until;

/// Sends 300 bytes whose acknowledgement is lost, and then has `send_more` send what is lost. When the rules are
/// removed, the client retransmits both in one segment.
fn retransmit_with(engine: &'static str, send_more: impl Fn(&Flow)) -> Flow {
    let flow = Flow::open(engine);
    let lab = flow.lab();
    let first = vec![b'a'; 300];
    lab.set_drop_rules(&["out oifname \"to-1002\" meta l4proto tcp drop"]);
    write(&flow.client, &first);
    assert_eq!(read_exact(&flow.backend, first.len()), first);
    lab.set_drop_rules(&[
        "out oifname \"to-1002\" meta l4proto tcp drop",
        "in iifname \"to-1002\" meta l4proto tcp drop",
    ]);
    send_more(&flow);
    // The segment, its tail loss probe (RFC 8985 §7), and the first retransmission of both.
    wait_until("three packets to be dropped", || (lab.dropped_packets("in") >= 3).then_some(()));
    flow
}

#[test]
fn overlapping_retransmissions_arrive_once() {
    for engine in SOCKET_ENGINES {
        let second = vec![b'b'; 200];
        let flow = retransmit_with(engine, |flow| write(&flow.client, &second));
        let before = sockmap_count(&flow, SockmapCounter::Trimmed);
        flow.lab().set_drop_rules(&[]);
        assert_eq!(read_exact(&flow.backend, second.len()), second, "{engine}");
        if engine == "sockmap" {
            let trimmed = sockmap_count(&flow, SockmapCounter::Trimmed);
            assert!(trimmed > before, "the test needs a segment that overlaps");
        }
        shutdown_write(&flow.client);
        assert_eq!(read_all(&flow.backend), b"", "no byte arrives twice");
        shutdown_write(&flow.backend);
        assert_eq!(read_all(&flow.client), b"");
        flow.assert_record(500, 0, "closed");
    }
}

/// Number of buffers that the sockmap program has counted; 0 for other engines, which do not load it.
fn sockmap_count(flow: &Flow, counter: SockmapCounter) -> u64 {
    if flow.engine == "sockmap" { flow.agent.sockmap_counter(counter) } else { 0 }
}

/// In the retransmitted segment, only the FIN is new.
#[test]
fn a_fin_with_retransmitted_bytes_ends_the_stream() {
    for engine in SOCKET_ENGINES {
        let flow = retransmit_with(engine, |flow| shutdown_write(&flow.client));
        let before = sockmap_count(&flow, SockmapCounter::NoData);
        flow.lab().set_drop_rules(&[]);
        assert_eq!(read_all(&flow.backend), b"", "no byte arrives twice");
        if engine == "sockmap" {
            let without_data = sockmap_count(&flow, SockmapCounter::NoData);
            assert_eq!(without_data, before + 1, "the test needs a FIN with old bytes");
        }
        write(&flow.backend, b"an answer");
        shutdown_write(&flow.backend);
        assert_eq!(read_all(&flow.client), b"an answer");
        flow.assert_record(300, 9, "closed");
    }
}
