//! Resets for the peers of an offloaded flow, with the sequence numbers that they expect.

use std::io;
use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use snisplit_common::abi::packet::{FlowEntry, Tuple};
use socket2::{Domain, Protocol, Socket, Type};

use crate::bpf::address::peer_and_local;

/// Protocol of a raw socket whose packets bring their IP header, and which receives none (raw(7)).
const IPPROTO_RAW: i32 = 255;
/// TTL or hop limit of a reset.
const HOP_LIMIT: u8 = 64;

/// Resets both peers. Remove the flow from the maps first.
///
/// If no reset has the number that a peer expects, the peer's next packet reaches this kernel, which
/// answers with a reset of the right number (RFC 9293 §3.10.7.1).
pub(crate) fn send_resets(entry: &FlowEntry) {
    // A peer sees the sequence numbers of the other one translated.
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
    for (tuple, translation, peer, other_peer) in peers {
        // What the peer has acknowledged, and what was sent to it.
        for seq in [peer.acked_seq, other_peer.snd_nxt] {
            // A peer that gets no reset here gets one for its next packet.
            let _not_sent = send_reset(tuple, seq.wrapping_add(translation.seq_delta));
        }
    }
}

/// Sends a reset to the peer whose packets arrive with this tuple.
fn send_reset(tuple: &Tuple, seq: u32) -> io::Result<()> {
    let (peer, local) = peer_and_local(tuple);
    let builder = match (local.ip(), peer.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT)
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut packet = Vec::new();
    let tcp = builder.tcp(local.port(), peer.port(), seq, 0).rst();
    tcp.write(&mut packet, &[]).map_err(io::Error::other)?;
    let protocol = Some(Protocol::from(IPPROTO_RAW));
    let socket = Socket::new(Domain::for_address(peer), Type::RAW, protocol)?;
    socket.send_to(&packet, &SocketAddr::new(peer.ip(), 0).into()).map(drop)
}
