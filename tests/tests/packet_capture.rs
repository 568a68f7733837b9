//! Packets at both ends of a flow that the packet engine translates.

//@ engines: named

use std::process::Command;

use etherparse::TcpHeader;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use snisplit_tests::agent;
use snisplit_tests::capture::{Capture, CapturePoint};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::kernel::{PacketCounter, proc_net_counter};
use snisplit_tests::lab::Lab;
use snisplit_tests::testbed::Testbed;

const PACKET_ENGINE: [&str; 2] = ["--engine", "packet"];

/// Pins the calling thread, and the threads that it starts, to one core. A sender that changes its core may send
/// two segments in the wrong order.
fn pin_to_current_core() {
    let mut core = CpuSet::new();
    core.set(sched_getcpu());
    sched_setaffinity(None, &core).unwrap();
}

/// A segment with data or a FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DataSegment {
    /// Bytes of the stream in front of it.
    offset: u32,
    /// Bytes of data.
    len: usize,
    has_fin: bool,
}

/// Segments of one connection to a port that have data or a FIN, in order of arrival. Leaves out the first `skipped`
/// bytes of the stream.
fn data_segments(
    captured: &[(TcpHeader, usize)],
    destination_port: u16,
    skipped: u32,
) -> Vec<DataSegment> {
    let sent = || captured.iter().filter(|(tcp, _)| tcp.destination_port == destination_port);
    let syn = sent().find(|(tcp, _)| tcp.syn).expect("a handshake").0.sequence_number;
    assert_eq!(sent().filter(|(tcp, _)| tcp.syn).count(), 1, "SYNs");
    assert_eq!(sent().filter(|(tcp, _)| tcp.rst).count(), 0, "resets");
    sent()
        .map(|(tcp, len)| DataSegment {
            offset: tcp.sequence_number.wrapping_sub(syn).wrapping_sub(1),
            len: *len,
            has_fin: tcp.fin,
        })
        .filter(|DataSegment { offset, len, has_fin }| {
            (*len > 0 || *has_fin) && *offset >= skipped && *offset < u32::MAX / 2
        })
        .collect()
}

#[test]
fn each_segment_arrives_once_and_in_order() {
    let testbed = Testbed::new(&PACKET_ENGINE);
    let Testbed { lab, agent, .. } = &testbed;
    let points = [CapturePoint::Client, CapturePoint::Backends];
    let [at_client, at_backends] = points.map(|point| Capture::start(lab, point, "inout"));
    pin_to_current_core();
    let flow = testbed.connect_offloaded();
    let client_port = flow.client.local_addr().unwrap().port();
    flow.transfer_both_ways(3_000_000);
    let record = agent.next_record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
    let (at_client, at_backends) = (at_client.segments(lab), at_backends.segments(lab));
    // The agent's sockets forwarded the ClientHello, perhaps in other segments.
    let hello_len = ClientHello::new().sni(b"a.test").encode().len() as u32;
    let sent = data_segments(&at_client, agent::PORT, hello_len);
    assert!(sent.len() > 20, "{sent:?}");
    assert_eq!(sent, data_segments(&at_backends, 8001, hello_len));
    let to_backend = at_backends.iter().find(|(tcp, _)| tcp.destination_port == 8001).unwrap();
    let sent = data_segments(&at_backends, to_backend.0.source_port, 0);
    assert!(sent.len() > 20, "{sent:?}");
    assert_eq!(sent, data_segments(&at_client, client_port, 0));
}

/// Sets the mark of congestion (CE) on every 20th ECN-capable packet of the client.
fn mark_every_20th_packet(lab: &Lab) {
    let rules = "add table inet sp; add chain inet sp out { type filter hook output priority 0; }; \
                 add rule inet sp out tcp dport 443 ip ecn ect0 numgen inc mod 20 0 ip ecn set ce";
    lab.in_client(|| assert!(Command::new("nft").arg(rules).status().unwrap().success()));
}

/// A marked packet reaches a back end that has ECN, and is dropped in front of one that has not. Either way every
/// byte arrives.
#[test]
fn congestion_marks_reach_an_ecn_backend_and_drop_for_others() {
    for backend_has_ecn in [true, false] {
        let lab = Lab::new();
        let enable_ecn = || std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap();
        lab.in_client(enable_ecn);
        if backend_has_ecn {
            lab.in_proxy(enable_ecn);
        }
        let testbed = Testbed::in_lab(lab, &PACKET_ENGINE);
        let Testbed { lab, agent, .. } = &testbed;
        let flow = testbed.connect_offloaded();
        mark_every_20th_packet(lab);
        flow.transfer_both_ways(3_000_000);
        let record = agent.next_record();
        assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
        let dropped = agent.packet_counter(PacketCounter::EcnDropped);
        let received = lab.in_backends(|| proc_net_counter("netstat", "IpExt", "InCEPkts"));
        assert_eq!((received > 0, dropped > 0), (backend_has_ecn, !backend_has_ecn));
    }
}
