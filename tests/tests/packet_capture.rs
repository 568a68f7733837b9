//! What is on the wire at both ends of a flow that is translated between them.

//@ engines: named

use std::net::TcpListener;
use std::process::Command;

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::capture::{Capture, CapturePoint};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::kernel::{packet_counter, proc_net_counter};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::offloaded_flow::{connect_offloaded, transfer_both_ways};
use snisplit_tests::stream::listen;

/// The place of what is dropped because it is marked, in `abi::packet::Fate`.
const ECN_DROPPED: usize = 8;

fn start_agent_and_listener(lab: &Lab) -> (Agent, TcpListener) {
    let args = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
    (Agent::start(lab, &args), listen(lab, backend(8001)))
}

/// Keeps this thread, and those that it begins, to one core: a sender that changes its CPU has one of its
/// segments overtake another on the way.
fn pin_to_current_core() {
    let mut core = CpuSet::new();
    core.set(sched_getcpu());
    sched_setaffinity(None, &core).unwrap();
}

/// Data and ends of one direction behind the first `skipped` bytes, one after the other: where, and how much.
fn data_segments(
    all: &[(etherparse::TcpHeader, usize)],
    to: u16,
    skipped: u32,
) -> Vec<(u32, usize, bool)> {
    let of = || all.iter().filter(|(tcp, _)| tcp.destination_port == to);
    let syn = of().find(|(tcp, _)| tcp.syn).expect("a handshake").0.sequence_number;
    assert_eq!(of().filter(|(tcp, _)| tcp.syn).count(), 1);
    assert_eq!(of().filter(|(tcp, _)| tcp.rst).count(), 0, "resets");
    let at = |number: u32| number.wrapping_sub(syn).wrapping_sub(1);
    of().map(|(tcp, len)| (at(tcp.sequence_number), *len, tcp.fin))
        .filter(|(at, len, fin)| (*len > 0 || *fin) && *at >= skipped && *at < u32::MAX / 2)
        .collect()
}

/// What one end sends arrives at the other in the same pieces, each once and in the same order, and nothing
/// else does.
#[test]
fn each_segment_arrives_once_and_in_order() {
    let lab = Lab::new();
    let (agent, listener) = start_agent_and_listener(&lab);
    let sides = [CapturePoint::Client, CapturePoint::Backends];
    let [near, far] = sides.map(|side| Capture::start(&lab, side, "inout"));
    pin_to_current_core();
    let flow = connect_offloaded(&lab, agent::address(), &listener);
    let our_port = flow.0.local_addr().unwrap().port();
    transfer_both_ways(&flow, 3_000_000);
    let record = agent.next_record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
    let (near, far) = (near.segments(&lab), far.segments(&lab));
    let hello = ClientHello::new().sni(b"a.test").encode().len();
    // The hello went from socket to socket.
    let sent = data_segments(&near, agent::PORT, hello as u32);
    assert!(sent.len() > 20, "{sent:?}");
    assert_eq!(sent, data_segments(&far, 8001, hello as u32));
    let from_backend = far.iter().find(|(tcp, _)| tcp.destination_port == 8001).unwrap();
    let sent = data_segments(&far, from_backend.0.source_port, 0);
    assert!(sent.len() > 20, "{sent:?}");
    assert_eq!(sent, data_segments(&near, our_port, 0));
}

/// Has every twentieth packet of the client's that may be marked be marked.
fn mark_every_20th_packet(lab: &Lab) {
    let rules = "add table inet sp; add chain inet sp out { type filter hook output priority 0; }; \
                 add rule inet sp out tcp dport 443 ip ecn ect0 numgen inc mod 20 0 ip ecn set ce";
    lab.in_client(|| assert!(Command::new("nft").arg(rules).status().unwrap().success()));
}

/// A mark of congestion reaches a back end that has ECN, and is a loss for one that has not. Either way
/// the client hears of it, and every byte arrives.
#[test]
fn congestion_marks_reach_an_ecn_backend_and_drop_for_others() {
    for has_backend in [true, false] {
        let lab = Lab::new();
        let ask = || std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap();
        lab.in_client(ask);
        if has_backend {
            lab.in_proxy(ask);
        }
        let (agent, listener) = start_agent_and_listener(&lab);
        let flow = connect_offloaded(&lab, agent::address(), &listener);
        mark_every_20th_packet(&lab);
        transfer_both_ways(&flow, 3_000_000);
        let record = agent.next_record();
        assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
        let dropped = packet_counter(lab.namespace_names()[1], ECN_DROPPED);
        let received = lab.in_backends(|| proc_net_counter("netstat", "IpExt", "InCEPkts"));
        assert_eq!((received > 0, dropped > 0), (has_backend, !has_backend));
    }
}
