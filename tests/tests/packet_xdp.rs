//! The packet engine in the drivers of interfaces (XDP). TAP devices are the interfaces: they have native
//! XDP, and their frames are whole, as those of a NIC are. `cargo xtask test --kernel` runs this on virtio's
//! NICs too.

//@ engines: named

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::{kernel_at_least, packet_counter};
use snisplit_tests::lab::{Lab, PROXY6, backend, uses_nics};
use snisplit_tests::link::has_ipv6;
use snisplit_tests::offloaded_flow::{OffloadedFlow, connect_offloaded, transfer_both_ways};
use snisplit_tests::record_skip;
use snisplit_tests::segment::{
    build_segment, parse_verified, sack_option, timestamps_option, with_vlan_tag,
};
use snisplit_tests::stream::listen;

/// Why there is nothing to test.
const SKIP_REASON: &str = "what a driver can, Linux says since 6.3";
/// Places in `abi::packet::Fate`.
const TC_FORWARDED: usize = 0;
const XDP_FORWARDED: usize = 9;
/// `TC_ACT_REDIRECT`, `XDP_REDIRECT` and `XDP_PASS`.
const TC_ACT_REDIRECT: u64 = 7;
const XDP_REDIRECT: u64 = 4;
const XDP_PASS: u64 = 2;

fn write_config(lab: &Lab, is_v6: bool, xdp: bool) -> PathBuf {
    let file = lab.dir().join(format!("{xdp}.toml"));
    let listen = if has_ipv6() { "[::]" } else { "0.0.0.0" };
    let text = format!(
        "engine = \"packet\"\n[[listener]]\naddress = \"{listen}:{}\"\n[[route]]\n\
         sni = [\"a.test\"]\nbackends = [\"{}\"]\n[packet]\nxdp = {xdp}\n",
        agent::PORT,
        OffloadedFlow::backend_address(is_v6)
    );
    fs::write(&file, text).unwrap();
    file
}

fn start_agent(lab: &Lab, is_v6: bool, xdp: bool) -> Agent {
    Agent::start_with_config(lab, &write_config(lab, is_v6, xdp), &[])
}

/// How many packets were translated: by the drivers, and by the programs behind them.
fn translated_packets(lab: &Lab) -> [u64; 2] {
    [XDP_FORWARDED, TC_FORWARDED].map(|fate| packet_counter(lab.namespace_names()[1], fate))
}

#[test]
fn flows_are_forwarded_by_xdp() {
    if !kernel_at_least(6, 3) {
        return record_skip(SKIP_REASON);
    }
    for is_v6 in [false, true].into_iter().filter(|is_v6| !is_v6 || has_ipv6()) {
        let lab = Lab::with_xdp_drivers();
        let agent = start_agent(&lab, is_v6, true);
        let listener = listen(&lab, OffloadedFlow::backend_address(is_v6).parse().unwrap());
        let at = if is_v6 { (PROXY6, agent::PORT).into() } else { agent::address() };
        let pairs: Vec<_> = (0..3).map(|_| connect_offloaded(&lab, at, &listener)).collect();
        for pair in &pairs {
            transfer_both_ways(pair, 1_000_000);
            let record = agent.next_record();
            assert_eq!(
                (&record["outcome"], &record["engine"]),
                (&"closed".into(), &"packet".into())
            );
        }
        let [early, late] = translated_packets(&lab);
        // The packet that a flow is taken over with is not the driver's.
        assert!(early > 3 * 2 * 1_000_000 / 1_500 && late < 20, "{early} {late}");
    }
}

/// What the driver's program makes of a packet is what the other one makes of it, and what is out of the
/// ordinary it leaves to that one.
#[test]
fn xdp_and_tc_translate_alike() {
    if !kernel_at_least(6, 3) {
        return record_skip(SKIP_REASON);
    }
    for is_v6 in [false, true].into_iter().filter(|is_v6| !is_v6 || has_ipv6()) {
        let lab = Lab::with_xdp_drivers();
        let agent = start_agent(&lab, is_v6, true);
        let flow = OffloadedFlow::with_agent(
            lab,
            agent,
            OffloadedFlow::backend_address(is_v6).parse().unwrap(),
        );
        let early = flow.program_id("sni_xdp");
        let all = [
            vec![],
            [vec![1, 1], timestamps_option(5, 6)].concat(),
            [vec![1], timestamps_option(5, 6), vec![0]].concat(),
            [vec![1], sack_option(&[7, 8]), vec![0]].concat(),
            [vec![1, 1], timestamps_option(5, 6), vec![1, 1], sack_option(&[1, 2, 3, 4])].concat(),
        ];
        for direction in ["up", "down"] {
            let [ends, _] = flow.tuples(direction);
            let numbers = (flow.field(direction, "snd_nxt"), 1, 1_000);
            for (options, payload) in all.iter().zip([&b""[..], b"odd", &[7; 1_400], b"", b"1"]) {
                let packet = build_segment(ends, numbers, options, payload);
                let (answer, wanted) = flow.test_run(&packet, None);
                let (answer_early, got) = flow.test_run_program(&early, &packet, None);
                assert_eq!((answer, answer_early), (TC_ACT_REDIRECT, XDP_REDIRECT));
                // Frames' addresses too.
                assert_eq!(got, wanted, "{direction} {options:?}");
                assert_eq!(parse_verified(&got).3, payload, "its sums are right");
            }
            let mut last = build_segment(ends, numbers, &[], b"x");
            last[if is_v6 { 21 } else { 22 }] = 1;
            let large = build_segment(ends, numbers, &[], &[7; 1_600]);
            let stranger = build_segment((ends.1, ends.0), numbers, &[], b"x");
            let unfinished = with_partial_checksum(build_segment(ends, numbers, &[], b"x"));
            let tagged = with_vlan_tag(&build_segment(ends, numbers, &[], b"x"));
            for packet in [&last, &large, &stranger, &unfinished, &tagged] {
                assert_eq!(
                    flow.test_run_program(&early, packet, None),
                    (XDP_PASS, packet.clone()),
                    "{direction}"
                );
            }
        }
    }
}

/// A jumbo frame that fills several of the driver's buffers: not every driver takes one from another.
#[test]
fn multi_buffer_frames_pass_to_the_stack() {
    if !kernel_at_least(6, 3) {
        return record_skip(SKIP_REASON);
    }
    let lab = Lab::with_xdp_drivers();
    let agent = start_agent(&lab, false, true);
    let flow = OffloadedFlow::with_agent(
        lab,
        agent,
        OffloadedFlow::backend_address(false).parse().unwrap(),
    );
    for link in ["to-1002", "to-2002"] {
        let words = ["link", "set", "dev", link, "mtu", "9000"];
        let done = flow.lab.in_proxy(|| Command::new("ip").args(words).status());
        assert!(done.unwrap().success());
    }
    let early = flow.program_id("sni_xdp");
    let [ends, _] = flow.tuples("up");
    for (bytes, answer) in [(3_000, XDP_REDIRECT), (6_000, XDP_PASS)] {
        let packet = build_segment(ends, (flow.field("up", "snd_nxt"), 1, 9), &[], &vec![7; bytes]);
        assert_eq!(flow.test_run_program(&early, &packet, None).0, answer, "{bytes}");
    }
}

/// Leaves the checksum to a device, as a virtual machine does: all but the pseudo-header is missing.
fn with_partial_checksum(mut packet: Vec<u8>) -> Vec<u8> {
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
fn xdp_flows_survive_their_agent() {
    if !kernel_at_least(6, 3) {
        return record_skip(SKIP_REASON);
    }
    let lab = Lab::with_xdp_drivers();
    let listener = listen(&lab, backend(8001));
    let is_in_driver = |number: u32| {
        fs::exists(format!("/sys/fs/bpf/snisplit/{}/early_{number}", lab.namespace_names()[1]))
            .unwrap()
    };
    let mut pairs: Vec<_> = Vec::new();
    let mut running = start_agent(&lab, false, true);
    for xdp in [true, false, true] {
        pairs.extend((0..3).map(|_| connect_offloaded(&lab, agent::address(), &listener)));
        running.signal(Signal::KILL);
        drop(running.allow_warnings());
        running = start_agent(&lab, false, xdp);
        let before = translated_packets(&lab);
        transfer_both_ways(&pairs.pop().unwrap(), 300_000);
        assert_eq!(running.next_record()["outcome"], "closed");
        let after = translated_packets(&lab);
        let [early, late] = [0, 1].map(|n| after[n] - before[n]);
        match uses_nics() {
            // Behind their driver packets come merged.
            true => assert!(early + late > 10 && (early > late) == xdp, "{early} {late}"),
            false => assert_eq!([early, late].map(|packets| packets > 200), [xdp, !xdp]),
        }
    }
    for pair in &pairs {
        transfer_both_ways(pair, 100_000);
        assert_eq!(running.next_record()["outcome"], "closed");
    }
    running.signal(Signal::TERM);
    assert!(running.wait_for_exit().success());
    assert!((0..100).all(|number| !is_in_driver(number)), "it takes its programs with it");
}

/// A veth takes frames of others only while its other end has XDP too: there the other programs do it.
#[test]
fn interfaces_without_xdp_redirect_use_tc() {
    let lab = Lab::new();
    let agent = start_agent(&lab, false, true).allow_warnings();
    assert_eq!(agent.log_count("packet.xdp: not in this driver: a veth"), 2);
    assert_eq!(agent.log_count("WARN packet.xdp: no interface can have it"), 1);
    let pair = connect_offloaded(&lab, agent::address(), &listen(&lab, backend(8001)));
    transfer_both_ways(&pair, 300_000);
    assert_eq!(agent.next_record()["engine"], "packet");
    let [early, late] = translated_packets(&lab);
    assert!(early == 0 && late > 0, "{early} {late}");
}
