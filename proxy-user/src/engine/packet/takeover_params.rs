//! Parameters of a takeover, and the check that two connections can be joined.
//!
//! Both handshakes are over, so the programs can only join connections whose options are compatible.

use std::io;
use std::net::SocketAddr;

use snisplit_common::abi::packet::{
    CLAMP_MSS_MASK, CLAMP_NO_SACK, CLAMP_NO_TIMESTAMPS, FlowEntry, Translation,
};
use tokio::net::TcpStream;

use super::ports::PortLease;
use crate::bpf::address::ingress_tuple;
use crate::engine::{DeclineReason, Socket, TcpTimeouts};
use crate::sys::{self, TcpInfo};

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;

/// include/uapi/linux/tcp.h
const TCPI_OPT_TIMESTAMPS: u8 = 1;
const TCPI_OPT_SACK: u8 = 2;
const TCPI_OPT_ECN: u8 = 8;
const TCPI_OPT_SYN_DATA: u8 = 32;
const TCPI_OPT_USEC_TS: u8 = 64;

/// Bytes that timestamps take in each segment (include/net/tcp.h).
const TCPOLEN_TSTAMP_ALIGNED: u32 = 12;

/// The client's connection: its addresses, and what its handshake agreed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientEndpoint {
    peer: SocketAddr,
    local: SocketAddr,
    info: TcpInfo,
}

/// What the packet engine needs to take over a flow whose back end is connected.
#[derive(Debug)]
pub(crate) struct TakeoverParams {
    pub(crate) client: ClientEndpoint,
    /// Local address of the connection to the back end.
    pub(crate) local: SocketAddr,
    pub(crate) lease: PortLease,
    /// Timeouts that the back end's socket does not have yet. Most of these sockets are closed before they
    /// matter.
    pub(crate) tcp_timeouts: TcpTimeouts,
}

impl ClientEndpoint {
    /// Reads the state of the client's connection. `peer` is its source address, and `listener` the
    /// address that accepted it.
    ///
    /// # Errors
    /// Fails if getsockopt(2) or getsockname(2) fails.
    pub(crate) fn new(
        client: &TcpStream,
        peer: SocketAddr,
        listener: SocketAddr,
    ) -> io::Result<Self> {
        let local = if listener.ip().is_unspecified() { client.local_addr()? } else { listener };
        Ok(Self { peer, local, info: sys::tcp_info(client)? })
    }

    /// The options and the MSS that the client lacks, as a value of the map of SYN clamps (`packet_clamps`).
    pub(super) fn syn_clamp_value(&self) -> u32 {
        let flag_if_absent = |option, flag| if self.info.options & option == 0 { flag } else { 0 };
        self.mss()
            | flag_if_absent(TCPI_OPT_TIMESTAMPS, CLAMP_NO_TIMESTAMPS)
            | flag_if_absent(TCPI_OPT_SACK, CLAMP_NO_SACK)
    }

    /// MSS in bytes that the client accepts.
    pub(super) fn mss(&self) -> u32 {
        mss_with_options(&self.info).min(CLAMP_MSS_MASK)
    }

    /// Whether a SYN needs a clamp, if this kernel advertises this MSS in it.
    pub(super) fn must_clamp(&self, advertised_mss: Option<u32>) -> bool {
        self.syn_clamp_value() & !CLAMP_MSS_MASK != 0
            || advertised_mss.is_none_or(|advertised| advertised > self.mss())
    }
}

impl TakeoverParams {
    /// Local and peer address of the connection to the back end.
    pub(crate) const fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.local, self.lease.backend())
    }
}

/// MSS towards the peer in bytes, with its options.
const fn mss_with_options(info: &TcpInfo) -> u32 {
    let timestamp_len =
        if info.options & TCPI_OPT_TIMESTAMPS == 0 { 0 } else { TCPOLEN_TSTAMP_ALIGNED };
    info.snd_mss + timestamp_len
}

/// Builds the flow entry, and returns it with the state of the back end's socket.
pub(super) fn flow_entry(
    backend: &Socket,
    params: Option<&TakeoverParams>,
) -> Result<(FlowEntry, TcpInfo), DeclineReason> {
    let backend = match backend {
        Socket::Unix(_) => return Err(DeclineReason::NotTcp),
        socket @ (Socket::Tcp(_) | Socket::UnregisteredTcp(_)) => socket,
    };
    let Some(params) = params else { return Err(DeclineReason::NoSourcePort) };
    let TakeoverParams {
        client: ClientEndpoint { peer, local: client_local, info: client_info },
        local: backend_local,
        lease,
        ..
    } = params;
    let client_link = AddressPair::new(*peer, *client_local);
    let backend_link = AddressPair::new(lease.backend(), *backend_local);
    if client_link.peer.is_ipv4() != backend_link.peer.is_ipv4() {
        return Err(DeclineReason::AddressFamilyMismatch);
    }
    // Packets that stay on this host pass no interface with programs.
    if client_link.is_same_host() || backend_link.is_same_host() {
        return Err(DeclineReason::SameHost);
    }
    let backend_info = sys::tcp_info(backend).map_err(|_| DeclineReason::NotConnected)?;
    lease.record_mss(backend_info.advmss);
    // `TCP_INFO` has the MSS before the clamp of the SYN.
    let advmss = backend_info.advmss.min(lease.clamped_mss.unwrap_or(backend_info.advmss));
    check_compatible(client_info, &TcpInfo { advmss, ..backend_info })?;
    let entry = FlowEntry {
        client_tuple: ingress_tuple(client_link.peer, client_link.local),
        backend_tuple: ingress_tuple(backend_link.peer, backend_link.local),
        to_backend: translation(client_info, &backend_info),
        to_client: translation(&backend_info, client_info),
        ..FlowEntry::default()
    };
    Ok((entry, backend_info))
}

/// Both addresses of a connection.
struct AddressPair {
    peer: SocketAddr,
    local: SocketAddr,
}

impl AddressPair {
    /// Writes IPv4 addresses of IPv6 sockets as IPv4 (RFC 4291 §2.5.5.2).
    fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port()).into();
        Self { peer: canonical(peer), local: canonical(local) }
    }

    fn is_same_host(&self) -> bool {
        self.peer.ip() == self.local.ip() || self.peer.ip().is_loopback()
    }
}

/// Checks that the options of both connections are compatible.
fn check_compatible(client: &TcpInfo, backend: &TcpInfo) -> Result<(), DeclineReason> {
    let either = client.options | backend.options;
    let differs = client.options ^ backend.options;
    if client.state != TCP_ESTABLISHED || backend.state != TCP_ESTABLISHED {
        return Err(DeclineReason::HalfClosed);
    }
    if either & TCPI_OPT_SYN_DATA != 0 {
        return Err(DeclineReason::TcpFastOpen);
    }
    if either & TCPI_OPT_USEC_TS != 0 {
        return Err(DeclineReason::TcpUsecTimestamps);
    }
    if differs & TCPI_OPT_TIMESTAMPS != 0 {
        return Err(DeclineReason::TcpTimestamps);
    }
    if differs & TCPI_OPT_SACK != 0 {
        return Err(DeclineReason::TcpSack);
    }
    // Each peer sends segments up to the MSS that it was told, which the other one must accept.
    if mss_with_options(backend) < client.advmss || mss_with_options(client) < backend.advmss {
        return Err(DeclineReason::TcpMss);
    }
    Ok(())
}

/// The part of a translation that the handshakes determine, for packets from `sender` to `receiver`.
fn translation(sender: &TcpInfo, receiver: &TcpInfo) -> Translation {
    Translation {
        wscale_from: sender.snd_wscale,
        wscale_to: receiver.rcv_wscale,
        strip_ecn: (sender.options & !receiver.options & TCPI_OPT_ECN != 0).into(),
        ..Translation::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: TcpInfo = TcpInfo {
        state: TCP_ESTABLISHED,
        options: TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | 4,
        snd_wscale: 7,
        rcv_wscale: 10,
        snd_mss: 1448,
        advmss: 1460,
        is_send_queue_empty: true,
        bytes_acked: 1,
        bytes_received: 0,
    };

    #[test]
    fn incompatible_handshakes_are_declined() {
        let with = |options| TcpInfo { options, ..INFO };
        let both = TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK;
        let rows = [
            (INFO, INFO, Ok(())),
            (with(TCPI_OPT_SACK), with(both), Err(DeclineReason::TcpTimestamps)),
            (with(both), with(TCPI_OPT_TIMESTAMPS), Err(DeclineReason::TcpSack)),
            (with(both | TCPI_OPT_ECN), with(both), Ok(())),
            (with(both), with(both | TCPI_OPT_SYN_DATA), Err(DeclineReason::TcpFastOpen)),
            (with(both), with(both | TCPI_OPT_USEC_TS), Err(DeclineReason::TcpUsecTimestamps)),
            (TcpInfo { state: 8, ..INFO }, INFO, Err(DeclineReason::HalfClosed)),
            // The MTU to the back end is smaller than the MSS that the client was told.
            (INFO, TcpInfo { snd_mss: 1388, ..INFO }, Err(DeclineReason::TcpMss)),
            // The back end was told a larger MSS than the client accepts.
            (TcpInfo { snd_mss: 1388, ..INFO }, INFO, Err(DeclineReason::TcpMss)),
            (TcpInfo { snd_mss: 1388, ..INFO }, TcpInfo { advmss: 1400, ..INFO }, Ok(())),
            // Without timestamps a segment has no other options.
            (
                TcpInfo { snd_mss: 1460, ..with(TCPI_OPT_SACK) },
                TcpInfo { snd_mss: 1460, ..with(TCPI_OPT_SACK) },
                Ok(()),
            ),
        ];
        for (client, backend, want) in rows {
            assert_eq!(check_compatible(&client, &backend), want, "{client:?} {backend:?}");
        }
        let (ecn_client, plain_backend) =
            (with(both | TCPI_OPT_ECN), TcpInfo { rcv_wscale: 3, ..INFO });
        let [up, down] =
            [translation(&ecn_client, &plain_backend), translation(&plain_backend, &ecn_client)];
        assert_eq!((up.wscale_from, up.wscale_to), (7, 3));
        assert_eq!((up.strip_ecn, down.strip_ecn), (1, 0));
        assert_eq!(translation(&ecn_client, &ecn_client).strip_ecn, 0);
    }
}
