//! What the packet engine makes of the wire: handshakes that agree on other options, paths that take
//! smaller packets, clients that come back, and what others send into a flow.

//@ engines: named

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use etherparse::{PacketBuilder, icmpv4};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::far_network::FarNetwork;
use snisplit_tests::flow::Flow;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::offloaded_flow::{connect_offloaded, transfer_both_ways};
use snisplit_tests::rng::SeededRng;
use snisplit_tests::stream::{
    RandomStream, accept, listen, read_all, read_all_hashed, read_exact, read_to_end_or_error,
    shutdown_write, write,
};
use snisplit_tests::wait::wait_until;

/// A flow that the kernel has.
fn open_flow(lab: &Lab, listener: &TcpListener) -> (TcpStream, TcpStream) {
    connect_offloaded(lab, agent::address(), listener)
}

fn sysctl_setter(switch: &str, value: &str) -> impl Fn() + Sync {
    let (path, value) = (format!("/proc/sys/net/ipv4/{switch}"), value.to_owned());
    move || std::fs::write(&path, &value).unwrap()
}

/// Whoever lacks what, the flow is carried; and by packets where the two connections can agree.
#[test]
fn flows_work_when_either_side_lacks_a_tcp_option() {
    let switched_off =
        ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"].map(|switch| (switch, "0"));
    for (switch, value) in switched_off.into_iter().chain([("tcp_ecn", "1")]) {
        for is_client in [true, false] {
            let lab = Lab::new();
            match is_client {
                true => lab.in_client(sysctl_setter(switch, value)),
                // Whoever is asked has ECN: it is we who ask for it.
                false if switch == "tcp_ecn" => lab.in_proxy(sysctl_setter(switch, value)),
                false => lab.in_backends(sysctl_setter(switch, value)),
            }
            let route = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
            let agent = Agent::start(&lab, &route);
            let listener = listen(&lab, backend(8001));
            transfer_both_ways(&open_flow(&lab, &listener), 3_000_000);
            let record = agent.next_record();
            // What a back end lacks is known when the client has been answered already.
            let stays = !is_client && ["tcp_timestamps", "tcp_sack"].contains(&switch);
            let engine = if stays { "splice" } else { "packet" };
            assert_eq!(record["engine"], engine, "{switch} {is_client}: {record}");
            assert_eq!(record["outcome"], "closed", "{record}");
            let labels = format!("{{engine=\"packet\",reason=\"{switch}\"}}");
            let declined = agent.metric(&lab, &format!("snisplit_engine_declined_total{labels}"));
            assert_eq!(declined, if stays { 1.0 } else { 0.0 }, "{switch} {is_client}");
        }
    }
}

/// A client that can take less than we can: the back end is told.
#[test]
fn the_backend_learns_the_mss_of_a_client_with_a_small_mtu() {
    let lab = Lab::new();
    let mtu = || {
        let mut ip = Command::new("ip");
        assert!(ip.args(["link", "set", "to-1001", "mtu", "1300"]).status().unwrap().success());
    };
    lab.in_client(mtu);
    let route = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
    let agent = Agent::start(&lab, &route);
    let listener = listen(&lab, backend(8001));
    transfer_both_ways(&open_flow(&lab, &listener), 3_000_000);
    let record = agent.next_record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
}

/// A process that comes back by the port of a connection which it knows nothing of any more.
#[test]
fn a_restarted_client_gets_a_new_flow_on_the_same_port() {
    let lab = Lab::new();
    let route = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
    let agent = Agent::start(&lab, &route);
    let listener = listen(&lab, backend(8001));
    let (client, server) = open_flow(&lab, &listener);
    let from = client.local_addr().unwrap();
    // Its resets do not get out, so nobody hears of its death.
    let nft = |rules: &'static str| {
        lab.in_client(|| assert!(Command::new("nft").arg(rules).status().unwrap().success()));
    };
    nft(
        "add table inet spdead; add chain inet spdead out { type filter hook output priority 0; }; \
         add rule inet spdead out tcp flags rst drop",
    );
    snisplit_tests::stream::close_with_reset(client);
    nft("delete table inet spdead");
    let again = lab.in_client(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect(&agent::address().into()).unwrap();
        TcpStream::from(socket)
    });
    assert_eq!(read_to_end_or_error(&server).1, Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(agent.next_record()["outcome"], "client_reset");
    write(&again, &ClientHello::new().sni(b"a.test").encode());
    let server = accept(&listener);
    read_exact(&server, ClientHello::new().sni(b"a.test").encode().len());
    write(&server, b"anew");
    assert_eq!(read_exact(&again, 4), b"anew");
}

/// Sends packets as they are.
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

/// A packet of a flow between these, by someone who guesses the numbers.
fn forged_packet(rng: &mut SeededRng, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (seq, ack) = (rng.below(1 << 32) as u32, rng.below(1 << 32) as u32);
    let ip = || PacketBuilder::ipv4(octets(from), octets(to), 64);
    let tcp = || ip().tcp(from.port(), to.port(), seq, 500);
    let mut packet = Vec::new();
    match rng.below(5) {
        0 => tcp().rst().write(&mut packet, &[]).unwrap(),
        1 => tcp().fin().ack(ack).write(&mut packet, &[]).unwrap(),
        2 => tcp().syn().write(&mut packet, &[]).unwrap(),
        3 => tcp().ack(ack).write(&mut packet, b"forged").unwrap(),
        _ => {
            // "The packet that you sent me is too big", of one that was never sent.
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

/// Resets, ends, SYNs, data and ICMP errors by someone who knows the addresses and guesses the numbers,
/// from both sides.
#[test]
fn forged_packets_end_no_flow() {
    const MANY: usize = 4_000;
    let flow = Flow::open("packet");
    let Flow { client, backend, agent, .. } = &flow;
    let lab = flow.lab();
    let ends = |stream: &TcpStream| (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    for (number, (from, to)) in [ends(client), ends(backend)].into_iter().enumerate() {
        let mut rng = SeededRng::new(number as u64 + 1);
        let packets: Vec<_> = (0..MANY).map(|_| forged_packet(&mut rng, from, to)).collect();
        match number {
            0 => lab.in_client(|| send_raw(to.ip(), &packets)),
            _ => lab.in_backends(|| send_raw(to.ip(), &packets)),
        }
    }
    transfer_both_ways(&(client.try_clone().unwrap(), backend.try_clone().unwrap()), 5_000_000);
    flow.assert_record(5_000_000, 5_000_000, "closed");
    assert_eq!(agent.log_count("WARN"), 0);
}

/// A router between us and the back end whose way on is narrower than either peer knows: it tells the
/// sender, which is the client.
#[test]
fn path_mtu_discovery_works() {
    for is_v6 in [false, true] {
        let lab = Lab::new();
        let far = FarNetwork::new(&lab, 1_300);
        let (to, address) = match is_v6 {
            false => ("10.91.3.2:8001", "10.91.3.2"),
            true => ("[fd91:3::2]:8001", "fd91:3::2"),
        };
        let route = format!("a.test={to}");
        let agent = Agent::start(&lab, &["--engine", "packet", "--route", &route]);
        let listener = far.run(|| TcpListener::bind((address, 8001)).unwrap());
        let agent_address = match is_v6 {
            false => agent::address(),
            true => (snisplit_tests::lab::PROXY6, agent::PORT).into(),
        };
        let (client, server) = connect_offloaded(&lab, agent_address, &listener);
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
        let icmp = lab.namespace_names()[1].to_owned();
        let errors = wait_until("the count of ICMP", || {
            let count = snisplit_tests::kernel::packet_counter(&icmp, 6);
            (count > 0).then_some(count)
        });
        assert!(errors < 50, "{errors} errors for one discovery");
    }
}
