//! A retransmission that begins with bytes that have been forwarded already: the acknowledgement of
//! the first ones is lost, what came behind them is lost, and Linux sends both again in one segment
//! (tcp_retrans_try_collapse).

//@ engines: named

use snisplit_tests::flow::{Flow, SOCKET_ENGINES};
use snisplit_tests::kernel::sockmap_counter;
use snisplit_tests::stream::{read_all, read_exact, shutdown_write, write};
use snisplit_tests::wait::wait_until;

/// Slots of `abi::Count`.
const EMPTY_SEGMENTS: usize = 4;
const TRIMMED_SEGMENTS: usize = 5;

/// The first bytes are forwarded; they are then sent again together with what `more` does.
fn retransmit_with(engine: &'static str, instance: &str, more: impl Fn(&Flow)) -> Flow {
    let flow = Flow::open_with(engine, &["--instance", instance]);
    let lab = flow.lab();
    let first = vec![b'a'; 300];
    lab.set_drop_rules(&["out oifname \"to-1002\" meta l4proto tcp drop"]);
    write(&flow.client, &first);
    assert_eq!(read_exact(&flow.backend, first.len()), first);
    lab.set_drop_rules(&[
        "out oifname \"to-1002\" meta l4proto tcp drop",
        "in iifname \"to-1002\" meta l4proto tcp drop",
    ]);
    more(&flow);
    // The segment, the probe for its tail, and the first retransmission of both.
    wait_until("all of that to be lost", || (lab.dropped_packets("in") >= 3).then_some(()));
    flow
}

#[test]
fn overlapping_retransmissions_arrive_once() {
    for engine in SOCKET_ENGINES {
        let instance = "sp-overlap";
        let second = vec![b'b'; 200];
        let flow = retransmit_with(engine, instance, |flow| write(&flow.client, &second));
        let trimmed =
            || if engine == "sockmap" { sockmap_counter(instance, TRIMMED_SEGMENTS) } else { 0 };
        let before = trimmed();
        flow.lab().set_drop_rules(&[]);
        assert_eq!(read_exact(&flow.backend, second.len()), second, "{engine}");
        if engine == "sockmap" {
            assert!(trimmed() > before, "nothing had to be trimmed: this test proves nothing");
        }
        shutdown_write(&flow.client);
        assert_eq!(read_all(&flow.backend), b"", "nothing comes twice");
        shutdown_write(&flow.backend);
        assert_eq!(read_all(&flow.client), b"");
        flow.assert_record(500, 0, "closed");
    }
}

/// Nothing but the FIN is new in that segment.
#[test]
fn a_fin_with_retransmitted_bytes_ends_the_stream() {
    for engine in SOCKET_ENGINES {
        let instance = "sp-old-and-end";
        let flow = retransmit_with(engine, instance, |flow| shutdown_write(&flow.client));
        let empty =
            || if engine == "sockmap" { sockmap_counter(instance, EMPTY_SEGMENTS) } else { 0 };
        let before = empty();
        flow.lab().set_drop_rules(&[]);
        assert_eq!(read_all(&flow.backend), b"", "nothing comes twice");
        if engine == "sockmap" {
            assert_eq!(empty(), before + 1, "it was another segment: this test proves nothing");
        }
        write(&flow.backend, b"an answer");
        shutdown_write(&flow.backend);
        assert_eq!(read_all(&flow.client), b"an answer");
        flow.assert_record(300, 9, "closed");
    }
}
