//! Ends a flow that has no sockets: a reset for each peer, with the numbers that it expects.

use std::io;
use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use snisplit_common::abi::packet::{FlowEntry, Tuple};
use socket2::{Domain, Protocol, Socket, Type};

use crate::bpf::address::peer_and_local;

/// Its packets come with their own IP header, and it receives none (raw(7)).
const IPPROTO_RAW: i32 = 255;
const HOPS: u8 = 64;

/// Resets both peers. The flow must be forgotten before: then the kernel answers whatever else they send
/// with a reset of the right number (RFC 9293 §3.10.7.1), should one of these not be the one expected.
pub(crate) fn send_resets(entry: &FlowEntry) {
    // A peer sees the other one's numbers as translated.
    let FlowEntry {
        client_tuple: client,
        backend_tuple: backend,
        to_backend: up,
        to_client: down,
        client_state: from_client,
        backend_state: from_backend,
        ..
    } = entry;
    let peers =
        [(client, down, from_client, from_backend), (backend, up, from_backend, from_client)];
    for (tuple, translation, own, other) in peers {
        // What it has acknowledged, and what it should have by now.
        for seq in [own.acked_seq, other.snd_nxt] {
            // A peer that does not hear of it hears of it when it says something.
            let _not_heard = send_reset(tuple, seq.wrapping_add(translation.seq_delta));
        }
    }
}

/// Sends a reset to the peer whose packets arrive by this tuple.
fn send_reset(tuple: &Tuple, seq: u32) -> io::Result<()> {
    let (peer, local) = peer_and_local(tuple);
    let builder = match (local.ip(), peer.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOPS),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut packet = Vec::new();
    let tcp = builder.tcp(local.port(), peer.port(), seq, 0).rst();
    tcp.write(&mut packet, &[]).map_err(io::Error::other)?;
    let protocol = Some(Protocol::from(IPPROTO_RAW));
    let socket = Socket::new(Domain::for_address(peer), Type::RAW, protocol)?;
    socket.send_to(&packet, &SocketAddr::new(peer.ip(), 0).into()).map(drop)
}
