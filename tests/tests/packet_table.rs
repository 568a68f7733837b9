//! The translation itself: packets in, packets out, by `BPF_PROG_TEST_RUN` of the very program that a
//! running agent has attached, with the numbers of a flow that it carries.

use std::net::SocketAddr;

use snisplit_tests::dice::Dice;
use snisplit_tests::kernel::packets;
use snisplit_tests::lab::Lab;
use snisplit_tests::line::has_ipv6;
use snisplit_tests::segment::{mark, marks, parse, sack, segment, stamps, tag};
use snisplit_tests::spliced::Spliced;

/// `TC_ACT_REDIRECT`.
const REDIRECTED: u64 = 7;
const DROPPED: u64 = 2;
/// The place of what is dropped because it is marked, in `abi::packet::Fate`.
const MARKED: usize = 8;

/// Options of every make, and what they must become: a stamp and its echo are `(s, e)`, edges are `x`.
fn layouts(s: u32, e: u32, x: [u32; 6]) -> Vec<Vec<u8>> {
    let nops = |n: usize| vec![1; n];
    let all: [&[Vec<u8>]; 8] = [
        &[],
        &[nops(2), stamps(s, e)],
        // At an odd place, with an end of the list behind it.
        &[nops(1), stamps(s, e), vec![0]],
        &[nops(2), sack(&x[..2])],
        &[nops(1), sack(&x[..2]), vec![0]],
        &[nops(2), stamps(s, e), nops(2), sack(&x)],
        // One that nobody knows in front.
        &[vec![253, 5, 9, 9, 9], stamps(s, e), nops(1)],
        &[sack(&x[..4]), stamps(s, e)],
    ];
    all.map(<[Vec<u8>]>::concat).to_vec()
}

fn both_families(test: impl Fn(Spliced)) {
    prepared(|_| (), test);
}

/// The same, and something is done to the lab before.
fn prepared(prepare: impl Fn(&Lab), test: impl Fn(Spliced)) {
    for is_v6 in [false, true] {
        if !is_v6 || has_ipv6() {
            let lab = Lab::new();
            prepare(&lab);
            test(Spliced::new(lab, is_v6));
        }
    }
}

/// Has connections that are begun there ask for ECN.
fn ask_for_ecn() {
    std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap();
}

/// ECN of two peers that have it is theirs. Where the client alone has it, the back end sees none, and
/// does not get what was marked on its way; in the other direction there is none.
#[test]
fn marks_of_congestion() {
    let carries = |scene: &Spliced, way: &str, ecn: u8| {
        let [ends, _] = scene.ends(way);
        let packet = segment(ends, (scene.of(way, "snd_nxt"), 1, 9), &[], b"odd");
        let (answer, out) = scene.run(&mark(&packet, ecn), None);
        (answer == REDIRECTED).then(|| {
            assert_eq!(parse(&out).3, b"odd", "and its sums are right");
            marks(&out)
        })
    };
    let both = |lab: &Lab| {
        lab.client(ask_for_ecn);
        lab.proxy(ask_for_ecn);
    };
    prepared(both, |scene| {
        for (way, ecn) in [("up", 0), ("up", 2), ("up", 3), ("down", 1), ("down", 3)] {
            assert_eq!(carries(&scene, way, ecn), Some((ecn, true)), "{way} {ecn}");
        }
    });
    prepared(
        |lab| lab.client(ask_for_ecn),
        |scene| {
            for ecn in [0, 1, 2] {
                assert_eq!(carries(&scene, "up", ecn), Some((0, false)), "{ecn}");
            }
            assert_eq!(carries(&scene, "up", 3), None);
            assert_eq!(packets(scene.lab.names()[1], MARKED), 1);
            assert_eq!(carries(&scene, "down", 0), Some((0, true)));
        },
    );
}

#[test]
fn every_field_of_every_layout() {
    both_families(|scene| {
        for way in ["up", "down"] {
            let n = |field| scene.of(way, field);
            let [ends, other] = scene.ends(way);
            let (seq, ack) = (n("snd_nxt"), 7_u32.wrapping_sub(n("ack_delta")));
            let (stamp, echo) =
                (1_000_u32, n("min_tsecr").wrapping_sub(n("tsecr_delta")).wrapping_add(9));
            let edges = [10_u32, 20, 30, 40, 50, 60];
            let new_edges = edges.map(|edge| edge.wrapping_add(n("ack_delta")));
            let (was, is) = (
                layouts(stamp, echo, edges),
                layouts(
                    stamp.wrapping_add(n("tsval_delta")),
                    echo.wrapping_add(n("tsecr_delta")),
                    new_edges,
                ),
            );
            for (was, is) in was.iter().zip(is) {
                for payload in [&b""[..], b"odd", &[7; 1_400]] {
                    let packet = segment(ends, (seq, ack, 1_000), was, payload);
                    let (answer, out) = scene.run(&packet, None);
                    assert_eq!(answer, REDIRECTED, "{way} {was:?}");
                    let (to, ttl, tcp, heard) = parse(&out);
                    assert_eq!((to, ttl), ((other.1, other.0), 63));
                    assert_eq!(tcp.sequence_number, seq.wrapping_add(n("seq_delta")));
                    assert_eq!(tcp.acknowledgment_number, 7);
                    let window = (1_000_u32 << n("wscale_from")) >> n("wscale_to");
                    assert_eq!(u32::from(tcp.window_size), window.min(65_535));
                    assert_eq!(tcp.options.as_slice(), is, "{way} {was:?}");
                    assert_eq!(heard, payload);
                }
            }
        }
    });
}

/// Stamps that our kernel had sent before are older than anything the receiver knows: it hears of the
/// oldest that it does. And a little room in the window is still some.
#[test]
fn floors() {
    both_families(|scene| {
        let [ends, _] = scene.ends("up");
        let n = |field| scene.of("up", field);
        let old = n("min_tsecr").wrapping_sub(n("tsecr_delta")).wrapping_sub(5);
        let options = [vec![1, 1], stamps(1, old)].concat();
        let packet = segment(ends, (n("snd_nxt"), 1, 0), &options, b"");
        let (_, _, tcp, _) = parse(&scene.run(&packet, None).1);
        assert_eq!(&tcp.options.as_slice()[8..], n("min_tsecr").to_be_bytes());
        assert_eq!(tcp.window_size, 0, "no room is none");
        let packet = segment(ends, (n("snd_nxt"), 1, 1), &[], b"");
        assert!(parse(&scene.run(&packet, None).1).2.window_size >= 1);
    });
}

/// What goes up and then down again, its numbers turned round as an answer has them, is what it was.
#[test]
fn there_and_back_is_where_it_was() {
    both_families(|scene| {
        let mut dice = Dice::new(5);
        let [[client, server], n] = [scene.ends("up"), scene.ends("down")];
        assert_eq!((client, server), (n[1], n[0]));
        for _ in 0..40 {
            let mut number = || dice.roll(1 << 32) as u32;
            let (seq, ack, edges) = (number(), number(), [number(), number()]);
            let (stamp, far) = (number(), dice.roll(1 << 20) as u32);
            let oldest = scene.of("up", "min_tsecr").wrapping_sub(scene.of("up", "tsecr_delta"));
            let echo = oldest.wrapping_add(far);
            let options = [vec![1, 1], stamps(stamp, echo), vec![1, 1], sack(&edges)].concat();
            let payload = vec![3; dice.roll(1_000) as usize];
            let up = segment(client, (seq, ack, 512), &options, &payload);
            let (_, _, there, _) = parse(&scene.run(&up, None).1);
            let bytes = there.options.as_slice();
            let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            let (stamp_there, echo_there) = (word(4), word(8));
            let turned = [vec![1, 1], stamps(echo_there, stamp_there)].concat();
            let numbers = (there.acknowledgment_number, there.sequence_number, 512);
            let down = segment(server, numbers, &turned, &payload);
            let (_, _, back, heard) = parse(&scene.run(&down, None).1);
            assert_eq!((back.sequence_number, back.acknowledgment_number), (ack, seq));
            let bytes = back.options.as_slice();
            let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(word(4), echo);
            let oldest = scene.of("down", "min_tsecr");
            let is_young = stamp.wrapping_sub(oldest) as i32 >= 0;
            assert_eq!(word(8), if is_young { stamp } else { oldest });
            assert_eq!(heard, payload);
        }
    });
}

/// A packet that stands for many has one header, and that is all there is to translate.
#[test]
fn what_a_nic_merged() {
    both_families(|scene| {
        let [ends, _] = scene.ends("down");
        let seq = scene.of("down", "snd_nxt");
        // gso_segs and gso_size of `struct __sk_buff`.
        let mut context = [0_u8; 192];
        context[164..168].copy_from_slice(&3_u32.to_ne_bytes());
        context[176..180].copy_from_slice(&1_000_u32.to_ne_bytes());
        let options = [vec![1, 1], stamps(5, 6)].concat();
        let packet = segment(ends, (seq, 1, 9), &options, &[9; 3_000]);
        let (answer, out) = scene.run(&packet, Some(&context));
        assert_eq!(answer, REDIRECTED);
        assert_eq!(parse(&out).3, [9; 3_000]);
    });
}

/// What cannot be is dropped, and what is nobody's is left alone.
#[test]
fn what_is_not_translated() {
    both_families(|scene| {
        let [ends, _] = scene.ends("up");
        let numbers = (scene.of("up", "snd_nxt"), 1, 9);
        for options in [&[5, 1, 1, 1][..], &[8, 40, 1, 1], &[1, 1, 1, 5]] {
            let packet = segment(ends, numbers, options, b"x");
            assert_eq!(scene.run(&packet, None).0, DROPPED, "{options:?}");
        }
        let mut last = segment(ends, numbers, &[], b"x");
        last[if ends.0.is_ipv4() { 22 } else { 21 }] = 1;
        assert_eq!(scene.run(&last, None).0, DROPPED, "its time to live is over");
        let stranger = (SocketAddr::new(ends.0.ip(), 1), ends.1);
        // The interface of a VLAN takes the tag off, and its programs see the packet then.
        let tagged = tag(&segment(ends, numbers, &[], b"x"));
        for packet in [segment(stranger, numbers, &[], b"x"), tagged] {
            let (answer, out) = scene.run(&packet, None);
            assert_eq!((answer, out), (u64::from(u32::MAX), packet));
        }
    });
}
