//! Checksums that the kernel keeps beside a packet: complete ones from a NIC, and partial ones that a device has to
//! finish. The program has to recognise both and to keep them right.

//@ engines: named

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4};
use snisplit_common::abi::packet::INGRESS_PROGRAM;
use snisplit_tests::impaired_link::Impairment;
use snisplit_tests::kernel::Direction;
use snisplit_tests::lab::Lab;
use snisplit_tests::link::has_ipv6;
use snisplit_tests::offloaded_flow::OffloadedFlow;
use snisplit_tests::record_skip;
use snisplit_tests::segment::{
    Endpoints, SegmentNumbers, build_segment, parse_verified, sack_option, timestamps_option,
};
use snisplit_tests::test_run::{TC_ACT_REDIRECT, run_with_checksum_complete};

/// Option lists: none, one that the program translates at a fixed place, and one that it has to parse.
fn option_lists() -> [Vec<u8>; 3] {
    let fixed = [vec![1, 1], timestamps_option(5, 6)].concat();
    [vec![], fixed.clone(), [fixed, vec![1, 1], sack_option(&[1, 2])].concat()]
}

/// A segment of a flow that the program forwards.
fn segment_of(flow: &OffloadedFlow, direction: Direction, options: &[u8]) -> Vec<u8> {
    let numbers = SegmentNumbers { seq: flow.field(direction, "snd_nxt"), ack: 1, window: 9 };
    build_segment(flow.arriving(direction), numbers, options, b"odd")
}

/// An ICMP error "too big" about `sent`, which came to its sender's peer.
fn icmp_too_big(endpoints: Endpoints, sent: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (quote, mut packet) = (&sent[14..], Vec::new());
    match (endpoints.source.ip(), endpoints.destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
            let builder = builder.ipv4(from.octets(), to.octets(), 64);
            let kind = Icmpv4Type::DestinationUnreachable(header);
            builder.icmpv4(kind).write(&mut packet, quote).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let builder = builder.ipv6(from.octets(), to.octets(), 64);
            let kind = Icmpv6Type::PacketTooBig { mtu: 1_300 };
            builder.icmpv6(kind).write(&mut packet, quote).unwrap();
        }
        both => panic!("{both:?}"),
    }
    packet
}

/// Packets of a flow that the program forwards: segments in both directions, and an ICMP error of the client about a
/// segment that it was sent.
fn forwarded_packets(flow: &OffloadedFlow) -> Vec<Vec<u8>> {
    let segments = [Direction::Up, Direction::Down]
        .into_iter()
        .flat_map(|direction| option_lists().map(|options| segment_of(flow, direction, &options)));
    let from_client = flow.arriving(Direction::Up);
    let field = |name| flow.field(Direction::Down, name);
    let seq = field("snd_nxt").wrapping_add(field("seq_delta"));
    let numbers = SegmentNumbers { seq, ack: 1, window: 9 };
    let sent = build_segment(from_client.reversed(), numbers, &[], b"");
    segments.chain([icmp_too_big(from_client, &sent)]).collect()
}

/// A NIC may give the sum of all bytes behind the Ethernet header (`CHECKSUM_COMPLETE`). The kernel compares it with
/// the packet that the program made.
#[test]
fn checksum_complete_stays_correct() {
    for is_v6 in [false, true] {
        if is_v6 && !has_ipv6() {
            continue;
        }
        let flow = OffloadedFlow::new(Lab::new(), is_v6);
        let program = flow.program_id(INGRESS_PROGRAM).parse().unwrap();
        for packet in forwarded_packets(&flow) {
            match flow.lab.in_proxy(|| run_with_checksum_complete(program, &packet)) {
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    return record_skip("Linux runs a program with a complete checksum since 6.16");
                }
                Err(error) => panic!("{error} of {packet:?}"),
                Ok((answer, _)) => assert_eq!(answer, TC_ACT_REDIRECT, "{packet:?}"),
            }
        }
    }
}

/// The program finds out whether a checksum is complete by what a change of the addresses does to it: nothing, if the
/// addresses before and after have the same sum.
///
/// Packets of a test run have a complete checksum. Those from the client have a partial one here, which the link
/// towards the back end finishes.
#[test]
fn addresses_with_equal_checksums_are_translated() {
    let lab = Lab::partly_impaired([false, true], Impairment::NONE);
    let ip = |args: &'static str| {
        move || assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success())
    };
    // Client 10.91.1.2 and proxy 10.91.1.1 have the same sum as proxy 10.91.2.1 and back end 10.91.0.2.
    lab.in_backends(ip("addr add 10.91.0.2/32 dev lo"));
    lab.in_proxy(ip("route add 10.91.0.2/32 via 10.91.2.2"));
    let flow = OffloadedFlow::to_backend(lab, SocketAddr::from(([10, 91, 0, 2], 8001)));
    for direction in [Direction::Up, Direction::Down] {
        let leaving = flow.leaving(direction);
        let sums = [flow.arriving(direction), leaving].map(ones_complement_sum);
        assert_eq!(sums[0], sums[1], "the test needs addresses with equal sums");
        for options in option_lists() {
            let result = flow.test_run(&segment_of(&flow, direction, &options), None);
            assert_eq!(result.answer, TC_ACT_REDIRECT, "{direction:?}");
            assert_eq!(parse_verified(&result.packet).endpoints, leaving, "{direction:?}");
        }
    }
    flow.peers().transfer_both_ways(1 << 20);
}

/// One's complement sum of two IPv4 addresses.
fn ones_complement_sum(Endpoints { source, destination }: Endpoints) -> u32 {
    let addresses = [source, destination].map(|end| match end {
        SocketAddr::V4(end) => u32::from(*end.ip()),
        SocketAddr::V6(end) => panic!("{end}"),
    });
    addresses.into_iter().map(|word| (word >> 16) + (word & 0xffff)).sum::<u32>() % 0xffff
}
