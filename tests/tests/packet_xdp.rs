//! The packet engine in the drivers of interfaces (XDP). The interfaces are TAP devices, which have native XDP and whose
//! frames have complete checksums, as those of a NIC. `cargo xtask test --kernel` runs this file on virtio NICs too.

//@ engines: named

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use snisplit_common::abi::packet::XDP_PROGRAM;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::{Direction, PacketCounter, kernel_at_least, pin_dir};
use snisplit_tests::lab::{Lab, backend, uses_nics};
use snisplit_tests::link::has_ipv6;
use snisplit_tests::offloaded_flow::{OffloadedFlow, TestRunResult};
use snisplit_tests::record_skip;
use snisplit_tests::segment::{
    SegmentNumbers, build_segment, parse_verified, sack_option, timestamps_option, with_vlan_tag,
};
use snisplit_tests::stream::listen;
use snisplit_tests::test_run::{TC_ACT_REDIRECT, XDP_PASS, XDP_REDIRECT};
use snisplit_tests::testbed::Peers;

const SKIP_REASON: &str = "Linux reports the XDP features of a driver since 6.3";

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

/// Packets that the programs have translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TranslatedPackets {
    by_xdp: u64,
    by_tc: u64,
}

impl TranslatedPackets {
    fn read(agent: &Agent) -> Self {
        Self {
            by_xdp: agent.packet_counter(PacketCounter::XdpForwarded),
            by_tc: agent.packet_counter(PacketCounter::Forwarded),
        }
    }

    fn since(self, before: Self) -> Self {
        Self { by_xdp: self.by_xdp - before.by_xdp, by_tc: self.by_tc - before.by_tc }
    }
}

/// Opens a flow in this address family, in a lab whose interfaces have XDP.
fn open_xdp_flow(is_v6: bool) -> OffloadedFlow {
    let lab = Lab::with_xdp_drivers();
    let agent = start_agent(&lab, is_v6, true);
    OffloadedFlow::with_agent(lab, agent, OffloadedFlow::backend_address(is_v6))
}

#[test]
fn flows_are_forwarded_by_xdp() {
    if !kernel_at_least(6, 3) {
        return record_skip(SKIP_REASON);
    }
    for is_v6 in [false, true].into_iter().filter(|is_v6| !is_v6 || has_ipv6()) {
        let lab = Lab::with_xdp_drivers();
        let agent = start_agent(&lab, is_v6, true);
        let listener = listen(&lab, OffloadedFlow::backend_address(is_v6));
        let address = OffloadedFlow::agent_address(is_v6);
        let flows: Vec<_> =
            (0..3).map(|_| Peers::connect_offloaded(&lab, address, &listener)).collect();
        for flow in &flows {
            flow.transfer_both_ways(1_000_000);
            let record = agent.next_record();
            assert_eq!(
                (&record["outcome"], &record["engine"]),
                (&"closed".into(), &"packet".into())
            );
        }
        let translated = TranslatedPackets::read(&agent);
        // The packet that starts a takeover is not translated in the driver.
        let TranslatedPackets { by_xdp, by_tc } = translated;
        assert!(by_xdp > 3 * 2 * 1_000_000 / 1_500 && by_tc < 20, "{translated:?}");
    }
}

/// Both programs make the same packet. The one in the driver leaves unusual packets to the other one.
#[test]
fn xdp_and_tc_translate_alike() {
    if !kernel_at_least(6, 3) {
        return record_skip(SKIP_REASON);
    }
    for is_v6 in [false, true].into_iter().filter(|is_v6| !is_v6 || has_ipv6()) {
        let flow = open_xdp_flow(is_v6);
        for direction in [Direction::Up, Direction::Down] {
            check_same_translation(&flow, direction);
            check_unusual_packets_pass(&flow, direction);
        }
    }
}

/// Numbers of the next segment of a direction.
fn next_numbers(flow: &OffloadedFlow, direction: Direction) -> SegmentNumbers {
    SegmentNumbers { seq: flow.field(direction, "snd_nxt"), ack: 1, window: 1_000 }
}

fn check_same_translation(flow: &OffloadedFlow, direction: Direction) {
    let xdp_program = flow.program_id(XDP_PROGRAM);
    let timestamps = timestamps_option(5, 6);
    let options = [
        vec![],
        [vec![1, 1], timestamps.clone()].concat(),
        [vec![1], timestamps.clone(), vec![0]].concat(),
        [vec![1], sack_option(&[7, 8]), vec![0]].concat(),
        [vec![1, 1], timestamps, vec![1, 1], sack_option(&[1, 2, 3, 4])].concat(),
    ];
    for (options, payload) in options.iter().zip([&b""[..], b"odd", &[7; 1_400], b"", b"1"]) {
        let endpoints = flow.arriving(direction);
        let packet = build_segment(endpoints, next_numbers(flow, direction), options, payload);
        let by_tc = flow.test_run(&packet, None);
        let by_xdp = flow.test_run_program(&xdp_program, &packet, None);
        assert_eq!((by_tc.answer, by_xdp.answer), (TC_ACT_REDIRECT, XDP_REDIRECT));
        // The Ethernet addresses are equal too.
        assert_eq!(by_xdp.packet, by_tc.packet, "{direction:?} {options:?}");
        assert_eq!(parse_verified(&by_xdp.packet).payload, payload);
    }
}

fn check_unusual_packets_pass(flow: &OffloadedFlow, direction: Direction) {
    let xdp_program = flow.program_id(XDP_PROGRAM);
    let endpoints = flow.arriving(direction);
    let numbers = next_numbers(flow, direction);
    let segment = || build_segment(endpoints, numbers, &[], b"x");
    let mut expired = segment();
    expired[if endpoints.source.is_ipv6() { 21 } else { 22 }] = 1;
    let larger_than_mtu = build_segment(endpoints, numbers, &[], &[7; 1_600]);
    let foreign = build_segment(endpoints.reversed(), numbers, &[], b"x");
    let partial_checksum = with_partial_checksum(segment());
    let tagged = with_vlan_tag(&segment());
    for packet in [expired, larger_than_mtu, foreign, partial_checksum, tagged] {
        let result = flow.test_run_program(&xdp_program, &packet, None);
        assert_eq!(result, TestRunResult { answer: XDP_PASS, packet }, "{direction:?}");
    }
}

/// A jumbo frame may fill several buffers of its driver, and not every driver sends such a frame of another driver.
#[test]
fn multi_buffer_frames_pass_to_the_stack() {
    if !kernel_at_least(6, 3) {
        return record_skip(SKIP_REASON);
    }
    let flow = open_xdp_flow(false);
    for link in ["to-1002", "to-2002"] {
        let args = ["link", "set", "dev", link, "mtu", "9000"];
        let done = flow.lab.in_proxy(|| Command::new("ip").args(args).status());
        assert!(done.unwrap().success());
    }
    let xdp_program = flow.program_id(XDP_PROGRAM);
    let (endpoints, numbers) = (flow.arriving(Direction::Up), next_numbers(&flow, Direction::Up));
    for (bytes, expected) in [(3_000, XDP_REDIRECT), (6_000, XDP_PASS)] {
        let packet = build_segment(endpoints, numbers, &[], &vec![7; bytes]);
        let result = flow.test_run_program(&xdp_program, &packet, None);
        assert_eq!(result.answer, expected, "{bytes}");
    }
}

/// Gives a segment a checksum of its pseudo-header only, as a virtual machine does for a device that finishes it.
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

/// Number of XDP programs that the agent with the instance name of this lab has pinned.
fn count_xdp_pins(lab: &Lab) -> usize {
    let pins = fs::read_dir(pin_dir(lab.namespace_names()[1])).into_iter().flatten();
    let is_xdp = |name: String| name.starts_with("xdp_");
    pins.filter(|pin| is_xdp(pin.as_ref().unwrap().file_name().into_string().unwrap())).count()
}

/// The program in the driver outlives its agent, and the next agent attaches it, or detaches it, as its own
/// configuration says.
#[test]
fn xdp_flows_survive_their_agent() {
    if !kernel_at_least(6, 3) {
        return record_skip(SKIP_REASON);
    }
    let lab = Lab::with_xdp_drivers();
    let listener = listen(&lab, backend(8001));
    let mut flows: Vec<_> = Vec::new();
    let mut running = start_agent(&lab, false, true);
    for xdp in [true, false, true] {
        let connect = |_| Peers::connect_offloaded(&lab, agent::address(), &listener);
        flows.extend((0..3).map(connect));
        running.signal(Signal::KILL);
        drop(running.allow_warnings());
        running = start_agent(&lab, false, xdp);
        assert_eq!(count_xdp_pins(&lab), if xdp { 2 } else { 0 });
        let before = TranslatedPackets::read(&running);
        flows.pop().unwrap().transfer_both_ways(300_000);
        assert_eq!(running.next_record()["outcome"], "closed");
        let TranslatedPackets { by_xdp, by_tc } = TranslatedPackets::read(&running).since(before);
        match uses_nics() {
            // Behind the driver, the kernel merges packets (GRO).
            true => assert!(by_xdp + by_tc > 10 && (by_xdp > by_tc) == xdp, "{by_xdp} {by_tc}"),
            false => assert_eq!([by_xdp, by_tc].map(|packets| packets > 200), [xdp, !xdp]),
        }
    }
    for flow in &flows {
        flow.transfer_both_ways(100_000);
        assert_eq!(running.next_record()["outcome"], "closed");
    }
    running.signal(Signal::TERM);
    assert!(running.wait_for_exit().success());
    assert_eq!(count_xdp_pins(&lab), 0, "an agent that stops detaches its programs");
}

/// A veth accepts frames of other drivers only while its other end has XDP too, so the programs at tc forward here.
#[test]
fn interfaces_without_xdp_redirect_use_tc() {
    let lab = Lab::new();
    let agent = start_agent(&lab, false, true).allow_warnings();
    assert_eq!(agent.log_count("packet.xdp: not supported by this driver: a veth"), 2);
    assert_eq!(agent.log_count("WARN packet.xdp: no interface supports it"), 1);
    let listener = listen(&lab, backend(8001));
    Peers::connect_offloaded(&lab, agent::address(), &listener).transfer_both_ways(300_000);
    assert_eq!(agent.next_record()["engine"], "packet");
    let translated = TranslatedPackets::read(&agent);
    assert!(translated.by_xdp == 0 && translated.by_tc > 0, "{translated:?}");
}
