//! The translation: packets in and packets out of the program that an agent has attached, by `BPF_PROG_TEST_RUN`, with
//! the numbers of a flow that the agent has.

//@ engines: named

use std::net::SocketAddr;

use fastrand::Rng;
use snisplit_tests::kernel::{Direction, PacketCounter};
use snisplit_tests::lab::Lab;
use snisplit_tests::link::has_ipv6;
use snisplit_tests::offloaded_flow::{OffloadedFlow, TestRunResult};
use snisplit_tests::segment::{
    Endpoints, SegmentNumbers, build_segment, ecn_bits, parse_verified, sack_option,
    timestamps_option, with_ecn, with_vlan_tag,
};
use snisplit_tests::test_run::{TC_ACT_REDIRECT, TC_ACT_SHOT, TCX_NEXT};

/// Both directions.
const DIRECTIONS: [Direction; 2] = [Direction::Up, Direction::Down];

/// Option lists in every layout that the program distinguishes, with these numbers in the timestamps and SACK options.
fn option_layouts(tsval: u32, tsecr: u32, edges: [u32; 6]) -> Vec<Vec<u8>> {
    let nops = |n: usize| vec![1; n];
    let timestamps = timestamps_option(tsval, tsecr);
    let all: [&[Vec<u8>]; 8] = [
        &[],
        &[nops(2), timestamps.clone()],
        // At an odd offset, with an end-of-list option behind it.
        &[nops(1), timestamps.clone(), vec![0]],
        &[nops(2), sack_option(&edges[..2])],
        &[nops(1), sack_option(&edges[..2]), vec![0]],
        &[nops(2), timestamps.clone(), nops(2), sack_option(&edges)],
        // Behind an experimental option.
        &[vec![253, 5, 9, 9, 9], timestamps.clone(), nops(1)],
        &[sack_option(&edges[..4]), timestamps],
    ];
    all.map(<[Vec<u8>]>::concat).to_vec()
}

fn for_both_families(test: impl Fn(OffloadedFlow)) {
    for_both_families_after(|_| (), test);
}

/// Prepares the lab before it starts the agent and the flow.
fn for_both_families_after(prepare: impl Fn(&Lab), test: impl Fn(OffloadedFlow)) {
    for is_v6 in [false, true] {
        if !is_v6 || has_ipv6() {
            let lab = Lab::new();
            prepare(&lab);
            test(OffloadedFlow::new(lab, is_v6));
        }
    }
}

/// Makes connections of this namespace request ECN.
fn enable_ecn() {
    std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap();
}

/// A segment that arrives with the next sequence number of a direction.
fn next_segment(
    flow: &OffloadedFlow,
    direction: Direction,
    window: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let numbers = SegmentNumbers { seq: flow.field(direction, "snd_nxt"), ack: 1, window };
    build_segment(flow.arriving(direction), numbers, options, payload)
}

/// If both peers have ECN, the program keeps its bits. If only the client has it, the program removes the bits towards
/// the back end and drops packets with a mark of congestion.
#[test]
fn ecn_marks_are_kept_or_removed() {
    // ECN bits of the forwarded packet; nothing if the program does not forward it.
    let forwarded_ecn = |flow: &OffloadedFlow, direction, ecn: u8| {
        let packet = next_segment(flow, direction, 9, &[], b"odd");
        let TestRunResult { answer, packet } = flow.test_run(&with_ecn(&packet, ecn), None);
        (answer == TC_ACT_REDIRECT).then(|| {
            assert_eq!(parse_verified(&packet).payload, b"odd");
            ecn_bits(&packet)
        })
    };
    let both = |lab: &Lab| {
        lab.in_client(enable_ecn);
        lab.in_proxy(enable_ecn);
    };
    for_both_families_after(both, |flow| {
        let [up, down] = DIRECTIONS;
        for (direction, ecn) in [(up, 0), (up, 2), (up, 3), (down, 1), (down, 3)] {
            let forwarded = forwarded_ecn(&flow, direction, ecn);
            assert_eq!(forwarded, Some((ecn, true)), "{direction:?} {ecn}");
        }
    });
    for_both_families_after(
        |lab| lab.in_client(enable_ecn),
        |flow| {
            for ecn in [0, 1, 2] {
                assert_eq!(forwarded_ecn(&flow, Direction::Up, ecn), Some((0, false)), "{ecn}");
            }
            assert_eq!(forwarded_ecn(&flow, Direction::Up, 3), None);
            assert_eq!(flow.agent.packet_counter(PacketCounter::EcnDropped), 1);
            assert_eq!(forwarded_ecn(&flow, Direction::Down, 0), Some((0, true)));
        },
    );
}

#[test]
fn every_field_is_translated_in_every_option_layout() {
    for_both_families(|flow| {
        for direction in DIRECTIONS {
            check_every_option_layout(&flow, direction);
        }
    });
}

fn check_every_option_layout(flow: &OffloadedFlow, direction: Direction) {
    let field = |name| flow.field(direction, name);
    let (seq, ack) = (field("snd_nxt"), 7_u32.wrapping_sub(field("ack_delta")));
    let tsval = 1_000_u32;
    let tsecr = field("min_tsecr").wrapping_sub(field("tsecr_delta")).wrapping_add(9);
    let edges = [10_u32, 20, 30, 40, 50, 60];
    let sent_options = option_layouts(tsval, tsecr, edges);
    let expected_options = option_layouts(
        tsval.wrapping_add(field("tsval_delta")),
        tsecr.wrapping_add(field("tsecr_delta")),
        edges.map(|edge| edge.wrapping_add(field("ack_delta"))),
    );
    let numbers = SegmentNumbers { seq, ack, window: 1_000 };
    for (sent, expected) in sent_options.iter().zip(expected_options) {
        for payload in [&b""[..], b"odd", &[7; 1_400]] {
            let packet = build_segment(flow.arriving(direction), numbers, sent, payload);
            let TestRunResult { answer, packet } = flow.test_run(&packet, None);
            assert_eq!(answer, TC_ACT_REDIRECT, "{direction:?} {sent:?}");
            let translated = parse_verified(&packet);
            assert_eq!((translated.endpoints, translated.ttl), (flow.leaving(direction), 63));
            assert_eq!(translated.tcp.sequence_number, seq.wrapping_add(field("seq_delta")));
            assert_eq!(translated.tcp.acknowledgment_number, 7);
            let window = (1_000_u32 << field("wscale_from")) >> field("wscale_to");
            assert_eq!(u32::from(translated.tcp.window_size), window.min(65_535));
            assert_eq!(translated.tcp.options.as_slice(), expected, "{direction:?} {sent:?}");
            assert_eq!(translated.payload, payload);
        }
    }
}

/// An echo of a timestamp that the agent's socket sent is older than any timestamp of the receiver: the program sends
/// the oldest one that the receiver knows. A window that is not 0 stays above 0.
#[test]
fn timestamp_echoes_and_windows_have_a_minimum() {
    for_both_families(|flow| {
        let field = |name| flow.field(Direction::Up, name);
        let old = field("min_tsecr").wrapping_sub(field("tsecr_delta")).wrapping_sub(5);
        let options = [vec![1, 1], timestamps_option(1, old)].concat();
        let translate = |window, options: &[u8]| {
            let packet = next_segment(&flow, Direction::Up, window, options, b"");
            parse_verified(&flow.test_run(&packet, None).packet).tcp
        };
        let tcp = translate(0, &options);
        assert_eq!(&tcp.options.as_slice()[8..], field("min_tsecr").to_be_bytes());
        assert_eq!(tcp.window_size, 0);
        assert!(translate(1, &[]).window_size >= 1);
    });
}

/// A segment is translated to the back end. Its answer, with the numbers that the back end would send, is translated to
/// the client and has the numbers of the first segment.
#[test]
fn translating_there_and_back_restores_a_segment() {
    for_both_families(|flow| {
        let mut rng = Rng::with_seed(5);
        for _ in 0..40 {
            check_there_and_back(&flow, &mut rng);
        }
    });
}

fn check_there_and_back(flow: &OffloadedFlow, rng: &mut Rng) {
    let mut number = || rng.u32(..);
    let (seq, ack, edges, tsval) = (number(), number(), [number(), number()], number());
    // An echo that is not too old.
    let min_tsecr = flow
        .field(Direction::Up, "min_tsecr")
        .wrapping_sub(flow.field(Direction::Up, "tsecr_delta"));
    let tsecr = min_tsecr.wrapping_add(rng.u32(..1 << 20));
    let options =
        [vec![1, 1], timestamps_option(tsval, tsecr), vec![1, 1], sack_option(&edges)].concat();
    let payload = vec![3; rng.usize(..1_000)];
    let numbers = SegmentNumbers { seq, ack, window: 512 };
    let up = build_segment(flow.arriving(Direction::Up), numbers, &options, &payload);
    let there = parse_verified(&flow.test_run(&up, None).packet).tcp;
    let [tsval_there, tsecr_there] = timestamps_of(there.options.as_slice());

    let options = [vec![1, 1], timestamps_option(tsecr_there, tsval_there)].concat();
    let (seq_there, ack_there) = (there.sequence_number, there.acknowledgment_number);
    let numbers = SegmentNumbers { seq: ack_there, ack: seq_there, window: 512 };
    let down = build_segment(flow.arriving(Direction::Down), numbers, &options, &payload);
    let back = parse_verified(&flow.test_run(&down, None).packet);
    assert_eq!((back.tcp.sequence_number, back.tcp.acknowledgment_number), (ack, seq));
    let [tsval_back, tsecr_back] = timestamps_of(back.tcp.options.as_slice());
    assert_eq!(tsval_back, tsecr);
    let min_tsecr = flow.field(Direction::Down, "min_tsecr");
    let is_recent = tsval.wrapping_sub(min_tsecr) as i32 >= 0;
    assert_eq!(tsecr_back, if is_recent { tsval } else { min_tsecr });
    assert_eq!(back.payload, payload);
}

/// Timestamp and echo of an option list that begins with two NOPs and the timestamps option.
fn timestamps_of(options: &[u8]) -> [u32; 2] {
    [4, 8].map(|at| u32::from_be_bytes(options[at..at + 4].try_into().unwrap()))
}

/// A packet that the kernel has merged from several segments (GRO) has one header.
#[test]
fn merged_segments_are_translated() {
    for_both_families(|flow| {
        // Offsets of gso_segs and gso_size in `struct __sk_buff`.
        let mut context = [0_u8; 192];
        context[164..168].copy_from_slice(&3_u32.to_ne_bytes());
        context[176..180].copy_from_slice(&1_000_u32.to_ne_bytes());
        let options = [vec![1, 1], timestamps_option(5, 6)].concat();
        let packet = next_segment(&flow, Direction::Down, 9, &options, &[9; 3_000]);
        let TestRunResult { answer, packet } = flow.test_run(&packet, Some(&context));
        assert_eq!(answer, TC_ACT_REDIRECT);
        assert_eq!(parse_verified(&packet).payload, [9; 3_000]);
    });
}

#[test]
fn invalid_packets_are_dropped_and_foreign_ones_untouched() {
    for_both_families(|flow| {
        let endpoints = flow.arriving(Direction::Up);
        // Lengths that no option has, or that go beyond the header.
        for options in [&[5, 1, 1, 1][..], &[8, 40, 1, 1], &[1, 1, 1, 5]] {
            let packet = next_segment(&flow, Direction::Up, 9, options, b"x");
            assert_eq!(flow.test_run(&packet, None).answer, TC_ACT_SHOT, "{options:?}");
        }
        let mut expired = next_segment(&flow, Direction::Up, 9, &[], b"x");
        expired[if endpoints.source.is_ipv4() { 22 } else { 21 }] = 1;
        assert_eq!(flow.test_run(&expired, None).answer, TC_ACT_SHOT, "its time to live is over");
        let foreign = Endpoints { source: SocketAddr::new(endpoints.source.ip(), 1), ..endpoints };
        let numbers =
            SegmentNumbers { seq: flow.field(Direction::Up, "snd_nxt"), ack: 1, window: 9 };
        // The kernel removes a VLAN's tag before the programs of the VLAN's interface see a packet.
        let tagged = with_vlan_tag(&next_segment(&flow, Direction::Up, 9, &[], b"x"));
        for packet in [build_segment(foreign, numbers, &[], b"x"), tagged] {
            let result = flow.test_run(&packet, None);
            assert_eq!(result, TestRunResult { answer: TCX_NEXT, packet });
        }
    });
}
