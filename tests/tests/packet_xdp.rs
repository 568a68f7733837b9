//! The packet engine in the drivers of interfaces (XDP). TAP devices are the interfaces: they have native
//! XDP, and their frames are whole, as those of a NIC are. `cargo xtask test --kernel` runs this on virtio's
//! NICs too.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::{is_since, packets};
use snisplit_tests::lab::{Lab, PROXY6, backend, has_nics};
use snisplit_tests::line::has_ipv6;
use snisplit_tests::segment::{parse, sack, segment, stamps, tag};
use snisplit_tests::skip;
use snisplit_tests::spliced::{Spliced, begin, carry};
use snisplit_tests::stream::listen;

/// Why there is nothing to test.
const OLDER: &str = "what a driver can, Linux says since 6.3";
/// Places in `abi::packet::Fate`.
const FORWARDED: usize = 0;
const EARLY: usize = 9;
/// `TC_ACT_REDIRECT`, `XDP_REDIRECT` and `XDP_PASS`.
const REDIRECTED: u64 = 7;
const REDIRECTED_EARLY: u64 = 4;
const PASSED: u64 = 2;

fn config(lab: &Lab, is_v6: bool, xdp: bool) -> PathBuf {
    let file = lab.folder().join(format!("{xdp}.toml"));
    let listen = if has_ipv6() { "[::]" } else { "0.0.0.0" };
    let text = format!(
        "engine = \"packet\"\n[[listener]]\naddress = \"{listen}:{}\"\n[[route]]\n\
         sni = [\"a.test\"]\nbackends = [\"{}\"]\n[packet]\nxdp = {xdp}\n",
        agent::PORT,
        Spliced::backend(is_v6)
    );
    fs::write(&file, text).unwrap();
    file
}

fn started(lab: &Lab, is_v6: bool, xdp: bool) -> Agent {
    Agent::start_from(lab, &config(lab, is_v6, xdp), &[])
}

/// How many packets were translated: by the drivers, and by the programs behind them.
fn translated(lab: &Lab) -> [u64; 2] {
    [EARLY, FORWARDED].map(|fate| packets(lab.names()[1], fate))
}

#[test]
fn flows_are_carried_by_the_drivers() {
    if !is_since(6, 3) {
        return skip(OLDER);
    }
    for is_v6 in [false, true].into_iter().filter(|is_v6| !is_v6 || has_ipv6()) {
        let lab = Lab::with_drivers();
        let agent = started(&lab, is_v6, true);
        let listener = listen(&lab, Spliced::backend(is_v6).parse().unwrap());
        let at = if is_v6 { (PROXY6, agent::PORT).into() } else { agent::address() };
        let pairs: Vec<_> = (0..3).map(|_| begin(&lab, at, &listener)).collect();
        for pair in &pairs {
            carry(pair, 1_000_000);
            let record = agent.record();
            assert_eq!(
                (&record["outcome"], &record["engine"]),
                (&"closed".into(), &"packet".into())
            );
        }
        let [early, late] = translated(&lab);
        // The packet that a flow is taken over with is not the driver's.
        assert!(early > 3 * 2 * 1_000_000 / 1_500 && late < 20, "{early} {late}");
    }
}

/// What the driver's program makes of a packet is what the other one makes of it, and what is out of the
/// ordinary it leaves to that one.
#[test]
fn the_same_translation() {
    if !is_since(6, 3) {
        return skip(OLDER);
    }
    for is_v6 in [false, true].into_iter().filter(|is_v6| !is_v6 || has_ipv6()) {
        let lab = Lab::with_drivers();
        let agent = started(&lab, is_v6, true);
        let scene = Spliced::by(lab, agent, Spliced::backend(is_v6).parse().unwrap());
        let early = scene.program("sni_xdp");
        let all = [
            vec![],
            [vec![1, 1], stamps(5, 6)].concat(),
            [vec![1], stamps(5, 6), vec![0]].concat(),
            [vec![1], sack(&[7, 8]), vec![0]].concat(),
            [vec![1, 1], stamps(5, 6), vec![1, 1], sack(&[1, 2, 3, 4])].concat(),
        ];
        for way in ["up", "down"] {
            let [ends, _] = scene.ends(way);
            let numbers = (scene.of(way, "snd_nxt"), 1, 1_000);
            for (options, payload) in all.iter().zip([&b""[..], b"odd", &[7; 1_400], b"", b"1"]) {
                let packet = segment(ends, numbers, options, payload);
                let (answer, wanted) = scene.run(&packet, None);
                let (answer_early, got) = scene.run_by(&early, &packet, None);
                assert_eq!((answer, answer_early), (REDIRECTED, REDIRECTED_EARLY));
                // Frames' addresses too.
                assert_eq!(got, wanted, "{way} {options:?}");
                assert_eq!(parse(&got).3, payload, "its sums are right");
            }
            let mut last = segment(ends, numbers, &[], b"x");
            last[if is_v6 { 21 } else { 22 }] = 1;
            let large = segment(ends, numbers, &[], &[7; 1_600]);
            let stranger = segment((ends.1, ends.0), numbers, &[], b"x");
            let unfinished = unsummed(segment(ends, numbers, &[], b"x"));
            let tagged = tag(&segment(ends, numbers, &[], b"x"));
            for packet in [&last, &large, &stranger, &unfinished, &tagged] {
                assert_eq!(scene.run_by(&early, packet, None), (PASSED, packet.clone()), "{way}");
            }
        }
    }
}

/// A jumbo frame that fills several of the driver's buffers: not every driver takes one from another.
#[test]
fn frames_in_several_buffers_pass() {
    if !is_since(6, 3) {
        return skip(OLDER);
    }
    let lab = Lab::with_drivers();
    let agent = started(&lab, false, true);
    let scene = Spliced::by(lab, agent, Spliced::backend(false).parse().unwrap());
    for link in ["to-1002", "to-2002"] {
        let words = ["link", "set", "dev", link, "mtu", "9000"];
        let done = scene.lab.proxy(|| Command::new("ip").args(words).status());
        assert!(done.unwrap().success());
    }
    let early = scene.program("sni_xdp");
    let [ends, _] = scene.ends("up");
    for (bytes, answer) in [(3_000, REDIRECTED_EARLY), (6_000, PASSED)] {
        let packet = segment(ends, (scene.of("up", "snd_nxt"), 1, 9), &[], &vec![7; bytes]);
        assert_eq!(scene.run_by(&early, &packet, None).0, answer, "{bytes}");
    }
}

/// Leaves the checksum to a device, as a virtual machine does: all but the pseudo-header is missing.
fn unsummed(mut packet: Vec<u8>) -> Vec<u8> {
    let (tcp, addresses) = if packet[12] == 0x86 { (54, 22..54) } else { (34, 26..34) };
    let length = (packet.len() - tcp) as u16;
    let halves = packet[addresses].chunks(2).map(|half| u16::from_be_bytes([half[0], half[1]]));
    let mut sum: u32 = halves.chain([6, length]).map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[tcp + 16..tcp + 18].copy_from_slice(&(sum as u16).to_be_bytes());
    packet
}

/// The driver's program outlives the agent too, and comes and goes between agents.
#[test]
fn flows_outlive_their_agent_in_the_driver() {
    if !is_since(6, 3) {
        return skip(OLDER);
    }
    let lab = Lab::with_drivers();
    let listener = listen(&lab, backend(8001));
    let is_in_driver = |number: u32| {
        fs::exists(format!("/sys/fs/bpf/snisplit/{}/early_{number}", lab.names()[1])).unwrap()
    };
    let mut pairs: Vec<_> = Vec::new();
    let mut running = started(&lab, false, true);
    for xdp in [true, false, true] {
        pairs.extend((0..3).map(|_| begin(&lab, agent::address(), &listener)));
        running.signal(Signal::KILL);
        drop(running.may_warn());
        running = started(&lab, false, xdp);
        let before = translated(&lab);
        carry(&pairs.pop().unwrap(), 300_000);
        assert_eq!(running.record()["outcome"], "closed");
        let after = translated(&lab);
        let [early, late] = [0, 1].map(|n| after[n] - before[n]);
        match has_nics() {
            // Behind their driver packets come merged.
            true => assert!(early + late > 10 && (early > late) == xdp, "{early} {late}"),
            false => assert_eq!([early, late].map(|packets| packets > 200), [xdp, !xdp]),
        }
    }
    for pair in &pairs {
        carry(pair, 100_000);
        assert_eq!(running.record()["outcome"], "closed");
    }
    running.signal(Signal::TERM);
    assert!(running.exit().success());
    assert!((0..100).all(|number| !is_in_driver(number)), "it takes its programs with it");
}

/// A veth takes frames of others only while its other end has XDP too: there the other programs do it.
#[test]
fn where_no_driver_can() {
    let lab = Lab::new();
    let agent = started(&lab, false, true).may_warn();
    assert_eq!(agent.logged("packet.xdp: not in this driver: a veth"), 2);
    assert_eq!(agent.logged("WARN packet.xdp: no interface can have it"), 1);
    let pair = begin(&lab, agent::address(), &listen(&lab, backend(8001)));
    carry(&pair, 300_000);
    assert_eq!(agent.record()["engine"], "packet");
    let [early, late] = translated(&lab);
    assert!(early == 0 && late > 0, "{early} {late}");
}
