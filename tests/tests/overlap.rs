//! A retransmission that begins with bytes that have been forwarded already: the acknowledgement of
//! the first ones is lost, what came behind them is lost, and Linux sends both again in one segment
//! (tcp_retrans_try_collapse).

use snisplit_tests::flow::{Flow, WITH_SOCKETS};
use snisplit_tests::kernel::counter;
use snisplit_tests::stream::{finish, read_all, read_some, write};
use snisplit_tests::wait::until;

/// Slots of `abi::Count`.
const EMPTY: usize = 4;
const TRIMMED: usize = 5;

/// The first bytes are forwarded; they are then sent again together with what `more` does.
fn sent_again(engine: &'static str, instance: &str, more: impl Fn(&Flow)) -> Flow {
    let flow = Flow::open_with(engine, &["--instance", instance]);
    let lab = flow.lab();
    let first = vec![b'a'; 300];
    lab.drop_at_proxy(&["out oifname \"to-1002\" meta l4proto tcp drop"]);
    write(&flow.client, &first);
    assert_eq!(read_some(&flow.backend, first.len()), first);
    lab.drop_at_proxy(&[
        "out oifname \"to-1002\" meta l4proto tcp drop",
        "in iifname \"to-1002\" meta l4proto tcp drop",
    ]);
    more(&flow);
    // The segment, the probe for its tail, and the first retransmission of both.
    until("all of that to be lost", || (lab.dropped("in") >= 3).then_some(()));
    flow
}

#[test]
fn what_is_sent_again_in_one_segment_arrives_once() {
    for engine in WITH_SOCKETS {
        let instance = "sp-overlap";
        let second = vec![b'b'; 200];
        let flow = sent_again(engine, instance, |flow| write(&flow.client, &second));
        let trimmed = || if engine == "sockmap" { counter(instance, TRIMMED) } else { 0 };
        let before = trimmed();
        flow.lab().drop_at_proxy(&[]);
        assert_eq!(read_some(&flow.backend, second.len()), second, "{engine}");
        if engine == "sockmap" {
            assert!(trimmed() > before, "nothing had to be trimmed: this test proves nothing");
        }
        finish(&flow.client);
        assert_eq!(read_all(&flow.backend), b"", "nothing comes twice");
        finish(&flow.backend);
        assert_eq!(read_all(&flow.client), b"");
        flow.ends(500, 0, "closed");
    }
}

/// Nothing but the FIN is new in that segment.
#[test]
fn an_end_of_stream_that_comes_with_old_bytes_is_one() {
    for engine in WITH_SOCKETS {
        let instance = "sp-old-and-end";
        let flow = sent_again(engine, instance, |flow| finish(&flow.client));
        let empty = || if engine == "sockmap" { counter(instance, EMPTY) } else { 0 };
        let before = empty();
        flow.lab().drop_at_proxy(&[]);
        assert_eq!(read_all(&flow.backend), b"", "nothing comes twice");
        if engine == "sockmap" {
            assert_eq!(empty(), before + 1, "it was another segment: this test proves nothing");
        }
        write(&flow.backend, b"an answer");
        finish(&flow.backend);
        assert_eq!(read_all(&flow.client), b"an answer");
        flow.ends(300, 9, "closed");
    }
}
