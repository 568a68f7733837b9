//! One connection to one back end, wherever it is.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_quickack;
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::net::{TcpStream, UnixStream};

use crate::config::{Backend, BackendAddr, Limits};
use crate::engine::Socket;
use crate::engine::packet::{ClientEndpoint, PacketEngine, TakeoverParams};
use crate::sys;
use crate::upstream::resolve::Resolver;

/// What connecting goes by.
#[derive(Clone, Copy)]
pub(crate) struct Connector<'c> {
    pub(crate) limits: &'c Limits,
    pub(crate) resolver: &'c Resolver,
    /// The address to come from, which need not be ours (`source_address = "client"`).
    pub(crate) source_addr: Option<IpAddr>,
    /// For a flow that the packet engine may carry.
    pub(crate) offload: Option<OffloadableConnect<'c>>,
    /// What the back end hears of us first.
    pub(crate) handshake_ack: HandshakeAck,
}

/// What a back end hears when it has answered a SYN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeAck {
    /// That its answer has arrived.
    Immediate,
    /// What we have for it, which says so too: a packet less, and a back end that is woken to accept(2) finds
    /// something to read. Should it not be sent within 200 ms (`TCP_DELACK_MAX`), it is acknowledged alone.
    Piggybacked,
}

/// A connection that is to fit to a client's.
#[derive(Clone, Copy)]
pub(crate) struct OffloadableConnect<'c> {
    pub(crate) engine: &'c PacketEngine,
    pub(crate) client_endpoint: ClientEndpoint,
}

/// A connection, and what the packet engine must know of it, if that may have it.
pub(crate) struct BackendSocket {
    pub(crate) socket: Socket,
    pub(crate) takeover: Option<Box<TakeoverParams>>,
}

impl<'c> Connector<'c> {
    /// Comes from an address and a port that the kernel chooses.
    pub(crate) const fn new(limits: &'c Limits, resolver: &'c Resolver) -> Self {
        Self {
            limits,
            resolver,
            source_addr: None,
            offload: None,
            handshake_ack: HandshakeAck::Immediate,
        }
    }

    /// Tries the addresses of a back end one after the other.
    pub(crate) async fn connect(&self, backend: &Backend) -> io::Result<BackendSocket> {
        let addresses = match &backend.address {
            BackendAddr::Unix(path) => {
                return self.without_offload(Socket::Unix(UnixStream::connect(path).await?));
            }
            BackendAddr::Ip(address) => vec![*address],
            BackendAddr::Host(host, port) => self.resolver.resolve(host, *port).await?,
        };
        let mut last_error = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            if !self.limits.allows_backend(address.ip()) {
                last_error =
                    io::Error::other(format!("{address} is outside limits.backends_allowed"));
                continue;
            }
            match self.connect_addr(address).await {
                Ok(connected) => return Ok(connected),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    async fn connect_addr(&self, to: SocketAddr) -> io::Result<BackendSocket> {
        if let (None, Some(offload)) = (self.source_addr, self.offload)
            && let Some(connected) = offload.connect_from_leased_port(to, self).await?
        {
            return Ok(connected);
        }
        let socket = self.new_tcp_socket(to)?;
        if let Some(source_addr) = self.source_addr {
            bind_transparent(&socket, source_addr)?;
        }
        self.without_offload(connect_socket(socket, to).await?.register()?)
    }

    fn new_tcp_socket(&self, to: SocketAddr) -> io::Result<socket2::Socket> {
        let (domain, kind) = (Domain::for_address(to), Type::STREAM.nonblocking());
        let socket = socket2::Socket::new(domain, kind, Some(Protocol::TCP))?;
        if self.handshake_ack == HandshakeAck::Piggybacked {
            // `tcp_rcv_synsent_state_process`, net/ipv4/tcp_input.c; not for longer than that.
            set_tcp_quickack(&socket, false)?;
        }
        Ok(socket)
    }

    fn without_offload(&self, socket: Socket) -> io::Result<BackendSocket> {
        socket.apply_timeouts(self.limits.tcp_timeouts())?;
        Ok(BackendSocket { socket, takeover: None })
    }
}

/// Has it come from that address, which need not be ours.
fn bind_transparent(socket: &socket2::Socket, source_addr: IpAddr) -> io::Result<()> {
    sys::set_transparent(socket, source_addr.is_ipv6())?;
    // The port is chosen when the back end is known: 60,000 for each client and back end.
    sys::set_bind_address_no_port(socket)?;
    socket.bind(&SocketAddr::new(source_addr, 0).into())
}

impl OffloadableConnect<'_> {
    /// Comes from a port of ours, and offers no more than the client can take. `None` without such a
    /// port.
    async fn connect_from_leased_port(
        self,
        to: SocketAddr,
        connector: &Connector<'_>,
    ) -> io::Result<Option<BackendSocket>> {
        let Self { engine, client_endpoint } = self;
        // Somebody may listen on one, or wait on it for what is late.
        for mut lease in (0..MAX_PORT_ATTEMPTS).map_while(|_| engine.lease_port(to)) {
            let socket = connector.new_tcp_socket(to)?;
            socket.set_reuse_address(true)?;
            let unspecified =
                if to.is_ipv4() { IpAddr::V4(0.into()) } else { IpAddr::V6(0.into()) };
            if socket.bind(&SocketAddr::new(unspecified, lease.port()).into()).is_err() {
                continue;
            }
            let Ok(_syn_clamp) = engine.clamp_syn(&mut lease, &client_endpoint) else { break };
            match connect_socket(socket, to).await {
                Ok(socket) => {
                    let local_addr = SockRef::from(&socket).local_addr()?.as_socket().unwrap_or(to);
                    let tcp_timeouts = connector.limits.tcp_timeouts();
                    let takeover = Box::new(TakeoverParams {
                        client: client_endpoint,
                        local: local_addr,
                        lease,
                        tcp_timeouts,
                    });
                    return Ok(Some(BackendSocket { socket, takeover: Some(takeover) }));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Connects one that does not block. A back end on this host or next to it has answered by then, and there
/// is no event to wait for.
async fn connect_socket(socket: socket2::Socket, to: SocketAddr) -> io::Result<Socket> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
            return Err(error);
        }
        Ok(()) | Err(_) => {}
    }
    if socket.peer_addr().is_ok() {
        return Ok(Socket::UnregisteredTcp(socket.into()));
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    stream.take_error()?.map_or(Ok(()), Err)?;
    Ok(Socket::Tcp(stream))
}

/// Ports of ours that are tried before one of the kernel's.
const MAX_PORT_ATTEMPTS: usize = 3;
