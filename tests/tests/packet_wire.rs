//! The packet engine and TCP on the wire: handshakes without an option, smaller MTUs, a client that returns on the same
//! port, and forged packets.

//@ engines: named

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use etherparse::{PacketBuilder, TcpOptionElement, icmpv4};
use fastrand::Rng;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::capture::{Capture, CapturePoint};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::far_network::FarNetwork;
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::PacketCounter;
use snisplit_tests::lab::Lab;
use snisplit_tests::link::has_ipv6;
use snisplit_tests::offloaded_flow::OffloadedFlow;
use snisplit_tests::segment::Endpoints;
use snisplit_tests::stream::{
    RandomStream, accept, close_with_reset, read_all, read_all_hashed, read_exact,
    read_to_end_or_error, shutdown_write, write,
};
use snisplit_tests::testbed::{Peers, Testbed};
use snisplit_tests::wait::wait_until;

const PACKET_ENGINE: [&str; 2] = ["--engine", "packet"];

fn sysctl_setter(switch: &str, value: &str) -> impl Fn() + Sync {
    let (path, value) = (format!("/proc/sys/net/ipv4/{switch}"), value.to_owned());
    move || std::fs::write(&path, &value).unwrap()
}

/// The packet engine carries the flow if both connections can agree on the options, and splice if not.
#[test]
fn flows_work_when_either_side_lacks_a_tcp_option() {
    let switched_off =
        ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"].map(|switch| (switch, "0"));
    for (switch, value) in switched_off.into_iter().chain([("tcp_ecn", "1")]) {
        for is_client in [true, false] {
            let lab = Lab::new();
            match is_client {
                true => lab.in_client(sysctl_setter(switch, value)),
                // A Linux server accepts ECN by default, so the agent's host decides.
                false if switch == "tcp_ecn" => lab.in_proxy(sysctl_setter(switch, value)),
                false => lab.in_backends(sysctl_setter(switch, value)),
            }
            let testbed = Testbed::in_lab(lab, &PACKET_ENGINE);
            let Testbed { agent, lab, .. } = &testbed;
            testbed.connect_offloaded().transfer_both_ways(3_000_000);
            let record = agent.next_record();
            // The client's handshake is over when the agent learns what the back end lacks.
            let stays = !is_client && ["tcp_timestamps", "tcp_sack"].contains(&switch);
            let engine = if stays { "splice" } else { "packet" };
            assert_eq!(record["engine"], engine, "{switch} {is_client}: {record}");
            assert_eq!(record["outcome"], "closed", "{record}");
            let labels = format!("{{engine=\"packet\",reason=\"{switch}\"}}");
            let declined = agent.metric(lab, &format!("snisplit_engine_declined_total{labels}"));
            assert_eq!(declined, if stays { 1.0 } else { 0.0 }, "{switch} {is_client}");
        }
    }
}

/// The agent's SYN to the back end offers the client's MSS, not that of the agent's interface.
#[test]
fn the_backend_learns_the_mss_of_a_client_with_a_small_mtu() {
    let lab = Lab::new();
    let mtu = || {
        let mut ip = Command::new("ip");
        assert!(ip.args(["link", "set", "to-1001", "mtu", "1300"]).status().unwrap().success());
    };
    lab.in_client(mtu);
    let testbed = Testbed::in_lab(lab, &PACKET_ENGINE);
    let Testbed { agent, lab, .. } = &testbed;
    let capture = Capture::start(lab, CapturePoint::Backends, "in");
    testbed.connect_offloaded().transfer_both_ways(3_000_000);
    let record = agent.next_record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
    let captured = capture.segments(lab);
    let (syn, _) = captured.iter().find(|(tcp, _)| tcp.syn).expect("a SYN of the agent");
    let mss = syn.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::MaximumSegmentSize(bytes)) => Some(bytes),
        _ => None,
    });
    // IP and TCP headers take 40 bytes of the MTU.
    assert_eq!(mss, Some(1_260));
}

/// The client has lost a connection without a packet, and connects again from the same port.
#[test]
fn a_restarted_client_gets_a_new_flow_on_the_same_port() {
    let testbed = Testbed::new(&PACKET_ENGINE);
    let Testbed { agent, listener, lab } = &testbed;
    let Peers { client, backend: old_server } = testbed.connect_offloaded();
    let from = client.local_addr().unwrap();
    // A rule drops the client's resets, so the agent does not learn that the client has gone.
    let nft = |rules: &'static str| {
        lab.in_client(|| assert!(Command::new("nft").arg(rules).status().unwrap().success()));
    };
    nft(
        "add table inet spdead; add chain inet spdead out { type filter hook output priority 0; }; \
         add rule inet spdead out tcp flags rst drop",
    );
    close_with_reset(client);
    nft("delete table inet spdead");
    let again = lab.in_client(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect(&agent::address().into()).unwrap();
        TcpStream::from(socket)
    });
    assert_eq!(read_to_end_or_error(&old_server).1, Err(ErrorKind::ConnectionReset));
    assert_eq!(agent.next_record()["outcome"], "client_reset");
    let hello = ClientHello::new().sni(b"a.test").encode();
    write(&again, &hello);
    let server = accept(listener);
    assert_eq!(read_exact(&server, hello.len()), hello);
    write(&server, b"anew");
    assert_eq!(read_exact(&again, 4), b"anew");
}

/// Sends IP packets, headers included.
fn send_raw(to: IpAddr, packets: &[Vec<u8>]) {
    let domain = if to.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let protocol = Some(socket2::Protocol::from(255));
    let socket = socket2::Socket::new(domain, socket2::Type::RAW, protocol).unwrap();
    for packet in packets {
        socket.send_to(packet, &SocketAddr::new(to, 0).into()).unwrap();
    }
}

fn octets(address: SocketAddr) -> [u8; 4] {
    match address.ip() {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("{address}"),
    }
}

/// A packet with the addresses of a flow and random numbers: a reset, a FIN, a SYN, data or an ICMP error.
fn forged_packet(rng: &mut Rng, endpoints: Endpoints) -> Vec<u8> {
    let Endpoints { source: from, destination: to } = endpoints;
    let (seq, ack) = (rng.u32(..), rng.u32(..));
    let ip = || PacketBuilder::ipv4(octets(from), octets(to), 64);
    let tcp = || ip().tcp(from.port(), to.port(), seq, 500);
    let mut packet = Vec::new();
    match rng.u8(..5) {
        0 => tcp().rst().write(&mut packet, &[]).unwrap(),
        1 => tcp().fin().ack(ack).write(&mut packet, &[]).unwrap(),
        2 => tcp().syn().write(&mut packet, &[]).unwrap(),
        3 => tcp().ack(ack).write(&mut packet, b"forged").unwrap(),
        _ => {
            // "Too big", about a packet that was never sent.
            let mut quote = Vec::new();
            let sent = PacketBuilder::ipv4(octets(to), octets(from), 63);
            sent.tcp(to.port(), from.port(), seq, 500).write(&mut quote, &[]).unwrap();
            let header = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
            let kind = etherparse::Icmpv4Type::DestinationUnreachable(header);
            ip().icmpv4(kind).write(&mut packet, &quote).unwrap();
        }
    }
    packet
}

/// A stranger who knows the addresses of a flow sends such packets from both sides.
#[test]
fn forged_packets_end_no_flow() {
    const MANY: usize = 4_000;
    let flow = Flow::open("packet");
    let Flow { client, backend, agent, .. } = &flow;
    let lab = flow.lab();
    let forge = |seed, endpoints: Endpoints| {
        let mut rng = Rng::with_seed(seed);
        (0..MANY).map(|_| forged_packet(&mut rng, endpoints)).collect::<Vec<_>>()
    };
    let of_client = Endpoints::sent_by(client);
    lab.in_client(|| send_raw(of_client.destination.ip(), &forge(1, of_client)));
    let of_backend = Endpoints::sent_by(backend);
    lab.in_backends(|| send_raw(of_backend.destination.ip(), &forge(2, of_backend)));
    let (client, backend) = (client.try_clone().unwrap(), backend.try_clone().unwrap());
    Peers { client, backend }.transfer_both_ways(5_000_000);
    flow.assert_record(5_000_000, 5_000_000, "closed");
    assert_eq!(agent.log_count("WARN"), 0);
}

/// A router behind the agent has a smaller MTU on its other side than the peers know. Its ICMP error about a packet has
/// to reach the client, which sent it.
#[test]
fn path_mtu_discovery_works() {
    for is_v6 in [false, true].into_iter().filter(|is_v6| !is_v6 || has_ipv6()) {
        let lab = Lab::new();
        let far = FarNetwork::new(&lab, 1_300);
        let (to, address) = match is_v6 {
            false => ("10.91.3.2:8001", "10.91.3.2"),
            true => ("[fd91:3::2]:8001", "fd91:3::2"),
        };
        let route = format!("a.test={to}");
        let agent = Agent::start(&lab, &["--engine", "packet", "--route", &route]);
        let listener = far.run(|| TcpListener::bind((address, 8001)).unwrap());
        let agent_address = OffloadedFlow::agent_address(is_v6);
        let Peers { client, backend: server } =
            Peers::connect_offloaded(&lab, agent_address, &listener);
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let hash = RandomStream::default().send(&client, 2_000_000);
                shutdown_write(&client);
                hash
            });
            assert_eq!(read_all_hashed(&server), (2_000_000, sending.join().unwrap()));
        });
        (&server).write_all(b"thanks").unwrap();
        shutdown_write(&server);
        assert_eq!(read_all(&client), b"thanks");
        let record = agent.next_record();
        assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
        let errors = wait_until("a translated ICMP error", || {
            let count = agent.packet_counter(PacketCounter::IcmpForwarded);
            (count > 0).then_some(count)
        });
        assert!(errors < 50, "{errors} errors for one discovery");
    }
}
