//! Checksums that are not only a packet's: what a NIC has summed up, what is left to a device, and the
//! addresses that tell the program which of these it is.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4};
use snisplit_tests::impair::Impairment;
use snisplit_tests::lab::Lab;
use snisplit_tests::line::has_ipv6;
use snisplit_tests::segment::{parse, sack, segment, stamps};
use snisplit_tests::spliced::{Spliced, carry};
use snisplit_tests::{skip, summed};

/// `TC_ACT_REDIRECT`.
const REDIRECTED: u32 = 7;

/// Options that are translated at once, and such that are walked over.
fn options() -> [Vec<u8>; 3] {
    let quick = [vec![1, 1], stamps(5, 6)].concat();
    [vec![], quick.clone(), [quick, vec![1, 1], sack(&[1, 2])].concat()]
}

/// An ICMP error from a peer, "too big", about what was sent to it.
fn error((peer, us): (SocketAddr, SocketAddr), sent: &[u8]) -> Vec<u8> {
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
fn packets(scene: &Spliced) -> Vec<Vec<u8>> {
    let segments = ["up", "down"].into_iter().flat_map(|way| {
        let [ends, _] = scene.ends(way);
        options().map(|options| segment(ends, (scene.of(way, "snd_nxt"), 1, 9), &options, b"odd"))
    });
    let [(client, us), _] = scene.ends("up");
    let seq = scene.of("down", "snd_nxt").wrapping_add(scene.of("down", "seq_delta"));
    let sent = segment((us, client), (seq, 1, 9), &[], b"");
    segments.chain([error((client, us), &sent)]).collect()
}

/// A NIC may say what all bytes behind the Ethernet header add up to (`CHECKSUM_COMPLETE`). The kernel
/// compares that with the packet that the program has made.
#[test]
fn what_a_nic_has_summed_up() {
    for is_v6 in [false, true] {
        if is_v6 && !has_ipv6() {
            continue;
        }
        let scene = Spliced::new(Lab::new(), is_v6);
        let program = scene.program("sni_in").parse().unwrap();
        for packet in packets(&scene) {
            match scene.lab.proxy(|| summed::run(program, &packet)) {
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    return skip("this kernel cannot try a packet that was summed up (6.16)");
                }
                Err(error) => panic!("{error} of {packet:?}"),
                Ok((answer, _)) => assert_eq!(answer, REDIRECTED, "{packet:?}"),
            }
        }
    }
}

/// Whether a checksum is whole is seen by what other addresses do to it: nothing, if they add up to the same.
/// A packet that is tried has a whole one; what comes from the client lacks it, and the line towards the back
/// end has it made.
#[test]
fn addresses_that_add_up_to_the_same() {
    let lab = Lab::partly_impaired([false, true], Impairment::GOOD);
    let ip = |words: &'static str| {
        move || assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success())
    };
    // 1.2 and 1.1, client and proxy, are as much as 2.1 and 0.2.
    lab.backends(ip("addr add 10.91.0.2/32 dev lo"));
    lab.proxy(ip("route add 10.91.0.2/32 via 10.91.2.2"));
    let scene = Spliced::towards(lab, SocketAddr::from(([10, 91, 0, 2], 8001)));
    for way in ["up", "down"] {
        let [ends, other] = scene.ends(way);
        assert_eq!(total(ends), total((other.1, other.0)), "or this tests nothing");
        for options in options() {
            let packet = segment(ends, (scene.of(way, "snd_nxt"), 1, 9), &options, b"odd");
            let (answer, out) = scene.run(&packet, None);
            assert_eq!((answer, parse(&out).0), (REDIRECTED.into(), (other.1, other.0)), "{way}");
        }
    }
    carry(scene.streams(), 1 << 20);
}

/// What two addresses add up to, in one's complement.
fn total((from, to): (SocketAddr, SocketAddr)) -> u32 {
    let words = [from, to].map(|end| match end {
        SocketAddr::V4(end) => u32::from(*end.ip()),
        SocketAddr::V6(end) => panic!("{end}"),
    });
    words.into_iter().map(|word| (word >> 16) + (word & 0xffff)).sum::<u32>() % 0xffff
}
