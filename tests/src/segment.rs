//! TCP segments: built, parsed and changed.

use std::net::{IpAddr, SocketAddr, TcpStream};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TcpHeader, TransportHeader};

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Where the packet comes from.
    pub source: SocketAddr,
    /// Where the packet goes to.
    pub destination: SocketAddr,
}

impl Endpoints {
    /// Endpoints of a packet in the other direction.
    pub const fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }

    /// Endpoints of packets that this socket sends.
    pub fn sent_by(socket: &TcpStream) -> Self {
        let (source, destination) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
        Self { source, destination }
    }
}

/// Numbers in the header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentNumbers {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window as in the header, not scaled.
    pub window: u16,
}

/// A segment whose checksums are right.
#[derive(Clone, Debug)]
pub struct ParsedSegment {
    /// Source and destination.
    pub endpoints: Endpoints,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// TCP header.
    pub tcp: TcpHeader,
    /// Data behind the TCP header.
    pub payload: Vec<u8>,
}

/// Builds an Ethernet frame with one segment.
pub fn build_segment(
    endpoints: Endpoints,
    numbers: SegmentNumbers,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let Endpoints { source, destination } = endpoints;
    let SegmentNumbers { seq, ack, window } = numbers;
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
        both => panic!("{both:?}"),
    };
    let tcp = builder.tcp(source.port(), destination.port(), seq, window).ack(ack).psh();
    let mut packet = Vec::new();
    tcp.options_raw(options).unwrap().write(&mut packet, payload).unwrap();
    packet
}

/// Parses an Ethernet frame with one segment. Panics if a checksum is wrong.
pub fn parse_verified(packet: &[u8]) -> ParsedSegment {
    let parsed = PacketHeaders::from_ethernet_slice(packet).unwrap();
    let Some(TransportHeader::Tcp(tcp)) = parsed.transport else { panic!("{parsed:?}") };
    let payload = parsed.payload.slice();
    let (source, destination, ttl, sum): (IpAddr, IpAddr, _, _) = match parsed.net.unwrap() {
        NetHeaders::Ipv4(ip, _) => {
            assert!(is_same_checksum(ip.header_checksum, ip.calc_header_checksum()), "{ip:?}");
            let sum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
            (ip.source.into(), ip.destination.into(), ip.time_to_live, sum)
        }
        NetHeaders::Ipv6(ip, _) => {
            let sum = tcp.calc_checksum_ipv6(&ip, payload).unwrap();
            (ip.source.into(), ip.destination.into(), ip.hop_limit, sum)
        }
        other => panic!("{other:?}"),
    };
    assert!(is_same_checksum(tcp.checksum, sum), "the checksum is {}, not {sum}", tcp.checksum);
    let endpoints = Endpoints {
        source: SocketAddr::new(source, tcp.source_port),
        destination: SocketAddr::new(destination, tcp.destination_port),
    };
    ParsedSegment { endpoints, ttl, tcp, payload: payload.to_vec() }
}

/// Whether two checksums are equal. One's complement has two zeros, and an incremental update may give the other
/// one (RFC 1624 §3).
const fn is_same_checksum(one: u16, other: u16) -> bool {
    one % 0xffff == other % 0xffff
}

/// A TCP header and the number of data bytes behind it. Checksums are not verified.
pub fn tcp_header(packet: &[u8]) -> (TcpHeader, usize) {
    let parsed = PacketHeaders::from_ethernet_slice(packet).unwrap();
    let Some(TransportHeader::Tcp(tcp)) = parsed.transport else { panic!("{parsed:?}") };
    (tcp, parsed.payload.slice().len())
}

/// Sets the ECN bits of the IP header (RFC 3168), and both ECN bits of the TCP header.
pub fn with_ecn(packet: &[u8], ecn: u8) -> Vec<u8> {
    let parsed = PacketHeaders::from_ethernet_slice(packet).unwrap();
    let Some(TransportHeader::Tcp(mut tcp)) = parsed.transport else { panic!("{parsed:?}") };
    (tcp.ece, tcp.cwr) = (true, true);
    let mut rewritten = packet[..14].to_vec();
    match parsed.net.unwrap() {
        NetHeaders::Ipv4(mut ip, _) => {
            ip.ecn = ecn.try_into().unwrap();
            tcp.checksum = tcp.calc_checksum_ipv4(&ip, parsed.payload.slice()).unwrap();
            ip.write(&mut rewritten).unwrap();
        }
        NetHeaders::Ipv6(mut ip, _) => {
            ip.set_ecn(ecn.try_into().unwrap());
            tcp.checksum = tcp.calc_checksum_ipv6(&ip, parsed.payload.slice()).unwrap();
            ip.write(&mut rewritten).unwrap();
        }
        other => panic!("{other:?}"),
    }
    tcp.write(&mut rewritten).unwrap();
    [rewritten, parsed.payload.slice().to_vec()].concat()
}

/// Adds the tag of VLAN 5 (802.1Q).
pub fn with_vlan_tag(packet: &[u8]) -> Vec<u8> {
    [&packet[..12], &[0x81, 0, 0, 5], &packet[12..]].concat()
}

/// The ECN bits of the IP header, and whether the TCP header has its ECN bits. Panics if it has one of two.
pub fn ecn_bits(packet: &[u8]) -> (u8, bool) {
    let parsed = PacketHeaders::from_ethernet_slice(packet).unwrap();
    let Some(TransportHeader::Tcp(tcp)) = parsed.transport else { panic!("{parsed:?}") };
    assert_eq!(tcp.ece, tcp.cwr);
    let ecn = match parsed.net.unwrap() {
        NetHeaders::Ipv4(ip, _) => ip.ecn.value(),
        NetHeaders::Ipv6(ip, _) => ip.ecn().value(),
        other => panic!("{other:?}"),
    };
    (ecn, tcp.ece)
}

/// The timestamps option (RFC 7323), without padding.
pub fn timestamps_option(value: u32, echo: u32) -> Vec<u8> {
    [&[8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
}

/// The SACK option (RFC 2018), without padding.
pub fn sack_option(edges: &[u32]) -> Vec<u8> {
    let bytes = edges.iter().flat_map(|edge| edge.to_be_bytes());
    [5, 2 + edges.len() as u8 * 4].into_iter().chain(bytes).collect()
}
