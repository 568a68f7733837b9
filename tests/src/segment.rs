//! TCP segments, made and taken apart.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TcpHeader, TransportHeader};

/// A segment that goes from one to the other.
pub fn build_segment(
    (from, to): (SocketAddr, SocketAddr),
    (seq, ack, window): (u32, u32, u16),
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
        both => panic!("{both:?}"),
    };
    let tcp = builder.tcp(from.port(), to.port(), seq, window).ack(ack).psh();
    let mut packet = Vec::new();
    tcp.options_raw(options).unwrap().write(&mut packet, payload).unwrap();
    packet
}

/// Takes a segment apart, and fails if one of its sums is wrong.
pub fn parse_verified(packet: &[u8]) -> ((SocketAddr, SocketAddr), u8, TcpHeader, Vec<u8>) {
    let parsed = PacketHeaders::from_ethernet_slice(packet).unwrap();
    let Some(TransportHeader::Tcp(tcp)) = parsed.transport else { panic!("{parsed:?}") };
    let payload = parsed.payload.slice();
    let (addresses, ttl, sum): ((IpAddr, IpAddr), _, _) = match parsed.net.unwrap() {
        NetHeaders::Ipv4(ip, _) => {
            assert!(is_same_checksum(ip.header_checksum, ip.calc_header_checksum()), "{ip:?}");
            let sum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
            ((ip.source.into(), ip.destination.into()), ip.time_to_live, sum)
        }
        NetHeaders::Ipv6(ip, _) => {
            let sum = tcp.calc_checksum_ipv6(&ip, payload).unwrap();
            ((ip.source.into(), ip.destination.into()), ip.hop_limit, sum)
        }
        other => panic!("{other:?}"),
    };
    assert!(is_same_checksum(tcp.checksum, sum), "the checksum is {}, not {sum}", tcp.checksum);
    let ends = ((addresses.0, tcp.source_port).into(), (addresses.1, tcp.destination_port).into());
    (ends, ttl, tcp, payload.to_vec())
}

/// One's complement has two zeros. A sum that was updated may be the other one, and adds up to the same
/// (RFC 1624 §3).
const fn is_same_checksum(one: u16, other: u16) -> bool {
    one % 0xffff == other % 0xffff
}

/// The TCP header of a segment, and how much data is behind it.
pub fn tcp_header(packet: &[u8]) -> (TcpHeader, usize) {
    let parsed = PacketHeaders::from_ethernet_slice(packet).unwrap();
    let Some(TransportHeader::Tcp(tcp)) = parsed.transport else { panic!("{parsed:?}") };
    (tcp, parsed.payload.slice().len())
}

/// The same with these bits of ECN (RFC 3168) in its IP header, and both of its bits in TCP's set.
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

/// The same with a VLAN's tag (802.1Q).
pub fn with_vlan_tag(packet: &[u8]) -> Vec<u8> {
    [&packet[..12], &[0x81, 0, 0, 5], &packet[12..]].concat()
}

/// ECN of a segment: the bits in its IP header, and whether it has both of TCP's; it never has one.
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

/// The timestamps option.
pub fn timestamps_option(value: u32, echo: u32) -> Vec<u8> {
    [&[8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
}

/// The option of selective acknowledgements.
pub fn sack_option(edges: &[u32]) -> Vec<u8> {
    let bytes = edges.iter().flat_map(|edge| edge.to_be_bytes());
    [5, 2 + edges.len() as u8 * 4].into_iter().chain(bytes).collect()
}
