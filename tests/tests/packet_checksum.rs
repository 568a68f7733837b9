//! Checksums that are not only a packet's: what a NIC has summed up, what is left to a device, and the
//! addresses that tell the program which of these it is.

//@ engines: named

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4};
use snisplit_tests::impaired_link::Impairment;
use snisplit_tests::lab::Lab;
use snisplit_tests::link::has_ipv6;
use snisplit_tests::offloaded_flow::{OffloadedFlow, transfer_both_ways};
use snisplit_tests::segment::{build_segment, parse_verified, sack_option, timestamps_option};
use snisplit_tests::{record_skip, test_run};

/// `TC_ACT_REDIRECT`.
const TC_ACT_REDIRECT: u32 = 7;

/// Options that are translated at once, and such that are walked over.
fn option_lists() -> [Vec<u8>; 3] {
    let quick = [vec![1, 1], timestamps_option(5, 6)].concat();
    [vec![], quick.clone(), [quick, vec![1, 1], sack_option(&[1, 2])].concat()]
}

/// An ICMP error from a peer, "too big", about what was sent to it.
fn icmp_too_big((peer, us): (SocketAddr, SocketAddr), sent: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (quote, mut packet) = (&sent[14..], Vec::new());
    match (peer.ip(), us.ip()) {
        (IpAddr::V4(peer), IpAddr::V4(us)) => {
            let header = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
            let builder = builder.ipv4(peer.octets(), us.octets(), 64);
            let kind = Icmpv4Type::DestinationUnreachable(header);
            builder.icmpv4(kind).write(&mut packet, quote).unwrap();
        }
        (IpAddr::V6(peer), IpAddr::V6(us)) => {
            let builder = builder.ipv6(peer.octets(), us.octets(), 64);
            let kind = Icmpv6Type::PacketTooBig { mtu: 1_300 };
            builder.icmpv6(kind).write(&mut packet, quote).unwrap();
        }
        both => panic!("{both:?}"),
    }
    packet
}

/// Packets of a flow that the program sends on: segments in both directions, and an error about what was
/// sent to the client.
fn forwarded_packets(flow: &OffloadedFlow) -> Vec<Vec<u8>> {
    let segments = ["up", "down"].into_iter().flat_map(|direction| {
        let [ends, _] = flow.tuples(direction);
        option_lists().map(|options| {
            build_segment(ends, (flow.field(direction, "snd_nxt"), 1, 9), &options, b"odd")
        })
    });
    let [(client, us), _] = flow.tuples("up");
    let seq = flow.field("down", "snd_nxt").wrapping_add(flow.field("down", "seq_delta"));
    let sent = build_segment((us, client), (seq, 1, 9), &[], b"");
    segments.chain([icmp_too_big((client, us), &sent)]).collect()
}

/// A NIC may say what all bytes behind the Ethernet header add up to (`CHECKSUM_COMPLETE`). The kernel
/// compares that with the packet that the program has made.
#[test]
fn checksum_complete_stays_correct() {
    for is_v6 in [false, true] {
        if is_v6 && !has_ipv6() {
            continue;
        }
        let flow = OffloadedFlow::new(Lab::new(), is_v6);
        let program = flow.program_id("sni_in").parse().unwrap();
        for packet in forwarded_packets(&flow) {
            match flow.lab.in_proxy(|| test_run::run_with_checksum_complete(program, &packet)) {
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    return record_skip(
                        "this kernel cannot try a packet that was summed up (6.16)",
                    );
                }
                Err(error) => panic!("{error} of {packet:?}"),
                Ok((answer, _)) => assert_eq!(answer, TC_ACT_REDIRECT, "{packet:?}"),
            }
        }
    }
}

/// Whether a checksum is whole is seen by what other addresses do to it: nothing, if they add up to the same.
/// A packet that is tried has a whole one; what comes from the client lacks it, and the line towards the back
/// end has it made.
#[test]
fn addresses_with_equal_checksums_are_translated() {
    let lab = Lab::partly_impaired([false, true], Impairment::NONE);
    let ip = |words: &'static str| {
        move || assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success())
    };
    // 1.2 and 1.1, client and proxy, are as much as 2.1 and 0.2.
    lab.in_backends(ip("addr add 10.91.0.2/32 dev lo"));
    lab.in_proxy(ip("route add 10.91.0.2/32 via 10.91.2.2"));
    let flow = OffloadedFlow::to_backend(lab, SocketAddr::from(([10, 91, 0, 2], 8001)));
    for direction in ["up", "down"] {
        let [ends, other] = flow.tuples(direction);
        assert_eq!(
            ones_complement_sum(ends),
            ones_complement_sum((other.1, other.0)),
            "or this tests nothing"
        );
        for options in option_lists() {
            let packet =
                build_segment(ends, (flow.field(direction, "snd_nxt"), 1, 9), &options, b"odd");
            let (answer, out) = flow.test_run(&packet, None);
            assert_eq!(
                (answer, parse_verified(&out).0),
                (TC_ACT_REDIRECT.into(), (other.1, other.0)),
                "{direction}"
            );
        }
    }
    transfer_both_ways(flow.streams(), 1 << 20);
}

/// What two addresses add up to, in one's complement.
fn ones_complement_sum((from, to): (SocketAddr, SocketAddr)) -> u32 {
    let words = [from, to].map(|end| match end {
        SocketAddr::V4(end) => u32::from(*end.ip()),
        SocketAddr::V6(end) => panic!("{end}"),
    });
    words.into_iter().map(|word| (word >> 16) + (word & 0xffff)).sum::<u32>() % 0xffff
}
