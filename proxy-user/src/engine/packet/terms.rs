//! Whether two connections can be made one: what their handshakes agreed on must fit together, for
//! nobody can agree anew.

use std::io;
use std::net::SocketAddr;

use snisplit_common::abi::packet::{
    CLAMP_MSS_MASK, CLAMP_NO_SACK, CLAMP_NO_TIMESTAMPS, FlowEntry, Translation,
};
use tokio::net::TcpStream;

use super::super::{Pair, Socket, Upkeep};
use super::Lease;
use crate::kernel::address::tuple;
use crate::sys::{self, TcpInfo};

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;

/// include/uapi/linux/tcp.h
const TIMESTAMPS: u8 = 1;
const SACK: u8 = 2;
const ECN: u8 = 8;
const SYN_DATA: u8 = 32;
const MICROSECONDS: u8 = 64;

/// Bytes of a segment that timestamps take.
const STAMP_BYTES: u32 = 12;

/// A client's connection, which one to a back end is to fit to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front {
    peer: SocketAddr,
    us: SocketAddr,
    info: TcpInfo,
}

/// What is known of a flow that the packet engine may carry, once its back end is connected.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) front: Front,
    /// Our address towards the back end.
    pub(crate) own: SocketAddr,
    pub(crate) lease: Lease,
    /// Not applied to the back end's socket yet: most of these have little time to live.
    pub(crate) upkeep: Upkeep,
}

impl Front {
    /// `peer` is where the connection comes from, and `at` its listener.
    pub(crate) fn of(client: &TcpStream, (peer, at): (SocketAddr, SocketAddr)) -> io::Result<Self> {
        let us = if at.ip().is_unspecified() { client.local_addr()? } else { at };
        Ok(Self { peer, us, info: sys::tcp_info(client)? })
    }

    /// What it has, for the back end's to be offered no more; as the programs know it (`OFFERS_MAP`).
    pub(super) fn offer(&self) -> u32 {
        let lacks = |option, word| if self.info.options & option == 0 { word } else { 0 };
        self.mss() | lacks(TIMESTAMPS, CLAMP_NO_TIMESTAMPS) | lacks(SACK, CLAMP_NO_SACK)
    }

    /// Bytes of a segment that the client can take.
    pub(super) fn mss(&self) -> u32 {
        whole_mss(&self.info).min(CLAMP_MSS_MASK)
    }

    /// Whether a SYN must be changed for that, where our kernel would tell of segments of this size.
    pub(super) fn restrains(&self, told_mss: Option<u32>) -> bool {
        self.offer() & !CLAMP_MSS_MASK != 0 || told_mss.is_none_or(|told| told > self.mss())
    }
}

impl Terms {
    /// Our address, and the back end's.
    pub(crate) const fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.own, self.lease.place().0)
    }
}

/// Options included.
const fn whole_mss(info: &TcpInfo) -> u32 {
    let stamps = if info.options & TIMESTAMPS == 0 { 0 } else { STAMP_BYTES };
    info.send_mss + stamps
}

/// The flow as it is to be armed and what its back end's socket says, or why it cannot be.
pub(super) fn splice_of(pair: &Pair) -> Result<(FlowEntry, TcpInfo), &'static str> {
    let backend = match &pair.backend {
        Socket::Unix(_) => return Err("not_tcp"),
        socket @ (Socket::Tcp(_) | Socket::Fresh(_)) => socket,
    };
    let Some(terms) = &pair.terms else { return Err("no_port") };
    let Terms { front: Front { peer, us, info: a }, own, lease, .. } = &**terms;
    let (front, back) = (canonical((*peer, *us)), canonical((lease.place().0, *own)));
    if front.0.is_ipv4() != back.0.is_ipv4() {
        return Err("other_family");
    }
    // What stays on this host does not pass the interfaces.
    if [front, back].iter().any(|(peer, us)| peer.ip() == us.ip() || peer.ip().is_loopback()) {
        return Err("local");
    }
    let b = sys::tcp_info(backend).map_err(|_| "not_connected")?;
    lease.learn_mss(b.told_mss);
    // The kernel does not know what became of its SYN.
    let told_mss = b.told_mss.min(lease.offered.unwrap_or(b.told_mss));
    fits(a, &TcpInfo { told_mss, ..b })?;
    let splice = FlowEntry {
        client_tuple: tuple(front.0, front.1),
        backend_tuple: tuple(back.0, back.1),
        to_backend: way(a, &b),
        to_client: way(&b, a),
        ..FlowEntry::default()
    };
    Ok((splice, b))
}

fn canonical((peer, us): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port()).into();
    (plain(peer), plain(us))
}

fn fits(client: &TcpInfo, backend: &TcpInfo) -> Result<(), &'static str> {
    let either = client.options | backend.options;
    let differs = client.options ^ backend.options;
    if client.state != TCP_ESTABLISHED || backend.state != TCP_ESTABLISHED {
        return Err("half_closed");
    }
    if either & SYN_DATA != 0 {
        return Err("tcp_fast_open");
    }
    if either & MICROSECONDS != 0 {
        return Err("tcp_usec_stamps");
    }
    if differs & TIMESTAMPS != 0 {
        return Err("tcp_timestamps");
    }
    if differs & SACK != 0 {
        return Err("tcp_sack");
    }
    // Each may send as much as it was told, and the other must be able to take that.
    if whole_mss(backend) < client.told_mss || whole_mss(client) < backend.told_mss {
        return Err("tcp_mss");
    }
    Ok(())
}

/// What the handshakes say of packets from the one to the other.
fn way(sender: &TcpInfo, receiver: &TcpInfo) -> Translation {
    Translation {
        wscale_from: sender.peer_scale,
        wscale_to: receiver.our_scale,
        strip_ecn: (sender.options & !receiver.options & ECN != 0).into(),
        ..Translation::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: TcpInfo = TcpInfo {
        state: TCP_ESTABLISHED,
        options: TIMESTAMPS | SACK | 4,
        peer_scale: 7,
        our_scale: 10,
        send_mss: 1448,
        told_mss: 1460,
        is_drained: true,
        bytes_acked: 1,
        bytes_received: 0,
    };

    #[test]
    fn what_fits_and_what_does_not() {
        let with = |options| TcpInfo { options, ..INFO };
        let both = TIMESTAMPS | SACK;
        let rows = [
            (INFO, INFO, Ok(())),
            (with(SACK), with(both), Err("tcp_timestamps")),
            (with(both), with(TIMESTAMPS), Err("tcp_sack")),
            (with(both | ECN), with(both), Ok(())),
            (with(both), with(both | SYN_DATA), Err("tcp_fast_open")),
            (with(both), with(both | MICROSECONDS), Err("tcp_usec_stamps")),
            (TcpInfo { state: 8, ..INFO }, INFO, Err("half_closed")),
            // A back end behind a smaller MTU than what the client was told.
            (INFO, TcpInfo { send_mss: 1388, ..INFO }, Err("tcp_mss")),
            // A back end that was told more than the client can take.
            (TcpInfo { send_mss: 1388, ..INFO }, INFO, Err("tcp_mss")),
            (TcpInfo { send_mss: 1388, ..INFO }, TcpInfo { told_mss: 1400, ..INFO }, Ok(())),
            // Without timestamps a segment has nothing else.
            (
                TcpInfo { send_mss: 1460, ..with(SACK) },
                TcpInfo { send_mss: 1460, ..with(SACK) },
                Ok(()),
            ),
        ];
        for (client, backend, want) in rows {
            assert_eq!(fits(&client, &backend), want, "{client:?} {backend:?}");
        }
        let (client, backend) = (with(both | ECN), TcpInfo { our_scale: 3, ..INFO });
        let [up, down] = [way(&client, &backend), way(&backend, &client)];
        assert_eq!((up.wscale_from, up.wscale_to), (7, 3));
        assert_eq!((up.strip_ecn, down.strip_ecn), (1, 0));
        assert_eq!(way(&client, &client).strip_ecn, 0);
    }
}
