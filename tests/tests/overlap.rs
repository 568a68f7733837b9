//! A retransmission that begins with bytes that have been forwarded already: the acknowledgement of
//! the first ones is lost, the second ones are lost, and Linux sends both again in one segment
//! (tcp_retrans_try_collapse).

use snisplit_tests::flow::{ENGINES, Flow};
use snisplit_tests::kernel::counter;
use snisplit_tests::stream::{finish, read_all, read_some, write};
use snisplit_tests::wait::until;

/// Slots of `abi::Count`.
const TRIMMED: usize = 5;

#[test]
fn what_is_sent_again_in_one_segment_arrives_once() {
    for engine in ENGINES {
        let instance = "sp-overlap";
        let flow = Flow::open_with(engine, &["--instance", instance]);
        let lab = flow.lab();
        let trimmed = || if engine == "sockmap" { counter(instance, TRIMMED) } else { 0 };
        let before = trimmed();
        let (first, second) = (vec![b'a'; 300], vec![b'b'; 200]);
        lab.drop_at_proxy(&["out oifname \"to-1002\" meta l4proto tcp drop"]);
        write(&flow.client, &first);
        assert_eq!(read_some(&flow.backend, first.len()), first);
        lab.drop_at_proxy(&[
            "out oifname \"to-1002\" meta l4proto tcp drop",
            "in iifname \"to-1002\" meta l4proto tcp drop",
        ]);
        write(&flow.client, &second);
        // The segment, the probe for its tail, and the first retransmission of both.
        until("all of that to be lost", || (lab.dropped("in") >= 3).then_some(()));
        lab.drop_at_proxy(&[]);
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
