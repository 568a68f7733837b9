//! The translation itself: packets in, packets out, by `BPF_PROG_TEST_RUN` of the very program that a
//! running agent has attached, with the numbers of a flow that it carries.

//@ engines: named

use std::net::SocketAddr;

use snisplit_tests::kernel::packet_counter;
use snisplit_tests::lab::Lab;
use snisplit_tests::link::has_ipv6;
use snisplit_tests::offloaded_flow::OffloadedFlow;
use snisplit_tests::rng::SeededRng;
use snisplit_tests::segment::{
    build_segment, ecn_bits, parse_verified, sack_option, timestamps_option, with_ecn,
    with_vlan_tag,
};

/// `TC_ACT_REDIRECT`.
const TC_ACT_REDIRECT: u64 = 7;
const TC_ACT_SHOT: u64 = 2;
/// The place of what is dropped because it is marked, in `abi::packet::Fate`.
const ECN_DROPPED: usize = 8;

/// Options of every make, and what they must become: a stamp and its echo are `(s, e)`, edges are `x`.
fn option_layouts(s: u32, e: u32, x: [u32; 6]) -> Vec<Vec<u8>> {
    let nops = |n: usize| vec![1; n];
    let all: [&[Vec<u8>]; 8] = [
        &[],
        &[nops(2), timestamps_option(s, e)],
        // At an odd place, with an end of the list behind it.
        &[nops(1), timestamps_option(s, e), vec![0]],
        &[nops(2), sack_option(&x[..2])],
        &[nops(1), sack_option(&x[..2]), vec![0]],
        &[nops(2), timestamps_option(s, e), nops(2), sack_option(&x)],
        // One that nobody knows in front.
        &[vec![253, 5, 9, 9, 9], timestamps_option(s, e), nops(1)],
        &[sack_option(&x[..4]), timestamps_option(s, e)],
    ];
    all.map(<[Vec<u8>]>::concat).to_vec()
}

fn for_both_families(test: impl Fn(OffloadedFlow)) {
    for_both_families_after(|_| (), test);
}

/// The same, and something is done to the lab before.
fn for_both_families_after(prepare: impl Fn(&Lab), test: impl Fn(OffloadedFlow)) {
    for is_v6 in [false, true] {
        if !is_v6 || has_ipv6() {
            let lab = Lab::new();
            prepare(&lab);
            test(OffloadedFlow::new(lab, is_v6));
        }
    }
}

/// Has connections that are begun there ask for ECN.
fn enable_ecn() {
    std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap();
}

/// ECN of two peers that have it is theirs. Where the client alone has it, the back end sees none, and
/// does not get what was marked on its way; in the other direction there is none.
#[test]
fn ecn_marks_are_kept_or_removed() {
    let carries = |flow: &OffloadedFlow, direction: &str, ecn: u8| {
        let [ends, _] = flow.tuples(direction);
        let packet = build_segment(ends, (flow.field(direction, "snd_nxt"), 1, 9), &[], b"odd");
        let (answer, out) = flow.test_run(&with_ecn(&packet, ecn), None);
        (answer == TC_ACT_REDIRECT).then(|| {
            assert_eq!(parse_verified(&out).3, b"odd", "and its sums are right");
            ecn_bits(&out)
        })
    };
    let both = |lab: &Lab| {
        lab.in_client(enable_ecn);
        lab.in_proxy(enable_ecn);
    };
    for_both_families_after(both, |flow| {
        for (direction, ecn) in [("up", 0), ("up", 2), ("up", 3), ("down", 1), ("down", 3)] {
            assert_eq!(carries(&flow, direction, ecn), Some((ecn, true)), "{direction} {ecn}");
        }
    });
    for_both_families_after(
        |lab| lab.in_client(enable_ecn),
        |flow| {
            for ecn in [0, 1, 2] {
                assert_eq!(carries(&flow, "up", ecn), Some((0, false)), "{ecn}");
            }
            assert_eq!(carries(&flow, "up", 3), None);
            assert_eq!(packet_counter(flow.lab.namespace_names()[1], ECN_DROPPED), 1);
            assert_eq!(carries(&flow, "down", 0), Some((0, true)));
        },
    );
}

#[test]
fn every_field_is_translated_in_every_option_layout() {
    for_both_families(|flow| {
        for direction in ["up", "down"] {
            let n = |field| flow.field(direction, field);
            let [ends, other] = flow.tuples(direction);
            let (seq, ack) = (n("snd_nxt"), 7_u32.wrapping_sub(n("ack_delta")));
            let (stamp, echo) =
                (1_000_u32, n("min_tsecr").wrapping_sub(n("tsecr_delta")).wrapping_add(9));
            let edges = [10_u32, 20, 30, 40, 50, 60];
            let new_edges = edges.map(|edge| edge.wrapping_add(n("ack_delta")));
            let (was, is) = (
                option_layouts(stamp, echo, edges),
                option_layouts(
                    stamp.wrapping_add(n("tsval_delta")),
                    echo.wrapping_add(n("tsecr_delta")),
                    new_edges,
                ),
            );
            for (was, is) in was.iter().zip(is) {
                for payload in [&b""[..], b"odd", &[7; 1_400]] {
                    let packet = build_segment(ends, (seq, ack, 1_000), was, payload);
                    let (answer, out) = flow.test_run(&packet, None);
                    assert_eq!(answer, TC_ACT_REDIRECT, "{direction} {was:?}");
                    let (to, ttl, tcp, received) = parse_verified(&out);
                    assert_eq!((to, ttl), ((other.1, other.0), 63));
                    assert_eq!(tcp.sequence_number, seq.wrapping_add(n("seq_delta")));
                    assert_eq!(tcp.acknowledgment_number, 7);
                    let window = (1_000_u32 << n("wscale_from")) >> n("wscale_to");
                    assert_eq!(u32::from(tcp.window_size), window.min(65_535));
                    assert_eq!(tcp.options.as_slice(), is, "{direction} {was:?}");
                    assert_eq!(received, payload);
                }
            }
        }
    });
}

/// Stamps that our kernel had sent before are older than anything the receiver knows: it hears of the
/// oldest that it does. And a little room in the window is still some.
#[test]
fn timestamp_echoes_and_windows_have_a_minimum() {
    for_both_families(|flow| {
        let [ends, _] = flow.tuples("up");
        let n = |field| flow.field("up", field);
        let old = n("min_tsecr").wrapping_sub(n("tsecr_delta")).wrapping_sub(5);
        let options = [vec![1, 1], timestamps_option(1, old)].concat();
        let packet = build_segment(ends, (n("snd_nxt"), 1, 0), &options, b"");
        let (_, _, tcp, _) = parse_verified(&flow.test_run(&packet, None).1);
        assert_eq!(&tcp.options.as_slice()[8..], n("min_tsecr").to_be_bytes());
        assert_eq!(tcp.window_size, 0, "no room is none");
        let packet = build_segment(ends, (n("snd_nxt"), 1, 1), &[], b"");
        assert!(parse_verified(&flow.test_run(&packet, None).1).2.window_size >= 1);
    });
}

/// What goes up and then down again, its numbers turned round as an answer has them, is what it was.
#[test]
fn translating_there_and_back_restores_a_segment() {
    for_both_families(|flow| {
        let mut rng = SeededRng::new(5);
        let [[client, server], n] = [flow.tuples("up"), flow.tuples("down")];
        assert_eq!((client, server), (n[1], n[0]));
        for _ in 0..40 {
            let mut number = || rng.below(1 << 32) as u32;
            let (seq, ack, edges) = (number(), number(), [number(), number()]);
            let (stamp, far) = (number(), rng.below(1 << 20) as u32);
            let oldest =
                flow.field("up", "min_tsecr").wrapping_sub(flow.field("up", "tsecr_delta"));
            let echo = oldest.wrapping_add(far);
            let options =
                [vec![1, 1], timestamps_option(stamp, echo), vec![1, 1], sack_option(&edges)]
                    .concat();
            let payload = vec![3; rng.below(1_000) as usize];
            let up = build_segment(client, (seq, ack, 512), &options, &payload);
            let (_, _, there, _) = parse_verified(&flow.test_run(&up, None).1);
            let bytes = there.options.as_slice();
            let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            let (stamp_there, echo_there) = (word(4), word(8));
            let turned = [vec![1, 1], timestamps_option(echo_there, stamp_there)].concat();
            let numbers = (there.acknowledgment_number, there.sequence_number, 512);
            let down = build_segment(server, numbers, &turned, &payload);
            let (_, _, back, received) = parse_verified(&flow.test_run(&down, None).1);
            assert_eq!((back.sequence_number, back.acknowledgment_number), (ack, seq));
            let bytes = back.options.as_slice();
            let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(word(4), echo);
            let oldest = flow.field("down", "min_tsecr");
            let is_young = stamp.wrapping_sub(oldest) as i32 >= 0;
            assert_eq!(word(8), if is_young { stamp } else { oldest });
            assert_eq!(received, payload);
        }
    });
}

/// A packet that stands for many has one header, and that is all there is to translate.
#[test]
fn merged_segments_are_translated() {
    for_both_families(|flow| {
        let [ends, _] = flow.tuples("down");
        let seq = flow.field("down", "snd_nxt");
        // gso_segs and gso_size of `struct __sk_buff`.
        let mut context = [0_u8; 192];
        context[164..168].copy_from_slice(&3_u32.to_ne_bytes());
        context[176..180].copy_from_slice(&1_000_u32.to_ne_bytes());
        let options = [vec![1, 1], timestamps_option(5, 6)].concat();
        let packet = build_segment(ends, (seq, 1, 9), &options, &[9; 3_000]);
        let (answer, out) = flow.test_run(&packet, Some(&context));
        assert_eq!(answer, TC_ACT_REDIRECT);
        assert_eq!(parse_verified(&out).3, [9; 3_000]);
    });
}

/// What cannot be is dropped, and what is nobody's is left alone.
#[test]
fn invalid_packets_are_dropped_and_foreign_ones_untouched() {
    for_both_families(|flow| {
        let [ends, _] = flow.tuples("up");
        let numbers = (flow.field("up", "snd_nxt"), 1, 9);
        for options in [&[5, 1, 1, 1][..], &[8, 40, 1, 1], &[1, 1, 1, 5]] {
            let packet = build_segment(ends, numbers, options, b"x");
            assert_eq!(flow.test_run(&packet, None).0, TC_ACT_SHOT, "{options:?}");
        }
        let mut last = build_segment(ends, numbers, &[], b"x");
        last[if ends.0.is_ipv4() { 22 } else { 21 }] = 1;
        assert_eq!(flow.test_run(&last, None).0, TC_ACT_SHOT, "its time to live is over");
        let stranger = (SocketAddr::new(ends.0.ip(), 1), ends.1);
        // The interface of a VLAN takes the tag off, and its programs see the packet then.
        let tagged = with_vlan_tag(&build_segment(ends, numbers, &[], b"x"));
        for packet in [build_segment(stranger, numbers, &[], b"x"), tagged] {
            let (answer, out) = flow.test_run(&packet, None);
            assert_eq!((answer, out), (u64::from(u32::MAX), packet));
        }
    });
}
