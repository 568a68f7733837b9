//! Checksums that are whole, those that are left to a device, and the addresses that tell the program which
//! of these it is.

use std::net::SocketAddr;
use std::process::Command;

use snisplit_tests::impair::Impairment;
use snisplit_tests::lab::Lab;
use snisplit_tests::segment::{parse, sack, segment, stamps};
use snisplit_tests::spliced::{Spliced, carry};

/// `TC_ACT_REDIRECT`.
const REDIRECTED: u64 = 7;

/// Options that are translated at once, and such that are walked over.
fn options() -> [Vec<u8>; 3] {
    let quick = [vec![1, 1], stamps(5, 6)].concat();
    [vec![], quick.clone(), [quick, vec![1, 1], sack(&[1, 2])].concat()]
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
            let packet = segment(ends, (scene.of(way, "end"), 1, 9), &options, b"odd");
            let (answer, out) = scene.run(&packet, None);
            assert_eq!((answer, parse(&out).0), (REDIRECTED, (other.1, other.0)), "{way}");
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
