//! Connections to one back end: a unix socket, an IP address or a host name.

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

/// Number of leased ports that a connection tries before the kernel chooses its port.
const MAX_PORT_ATTEMPTS: usize = 3;

/// Parameters of a connection to a back end.
#[derive(Clone, Copy)]
pub(crate) struct Connector<'c> {
    pub(crate) limits: &'c Limits,
    pub(crate) resolver: &'c Resolver,
    /// Source address of the connection. It may be that of the client (`source_address = "client"`).
    pub(crate) source_addr: Option<IpAddr>,
    /// Parameters of a connection that the packet engine may take over.
    pub(crate) offload: Option<OffloadableConnect<'c>>,
    pub(crate) handshake_ack: HandshakeAck,
}

/// How the kernel sends the last ACK of the TCP handshake.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeAck {
    /// At once, as a packet of its own.
    Immediate,
    /// With the first bytes. This saves a packet, and the back end has bytes to read when accept(2) returns.
    /// Without bytes the kernel sends the ACK after 200 ms (`TCP_DELACK_MAX`).
    Piggybacked,
}

/// A connection whose TCP options the packet engine can match with those of the client's connection.
#[derive(Clone, Copy)]
pub(crate) struct OffloadableConnect<'c> {
    pub(crate) engine: &'c PacketEngine,
    pub(crate) client_endpoint: ClientEndpoint,
}

/// A connection to a back end.
pub(crate) struct BackendSocket {
    pub(crate) socket: Socket,
    /// Parameters of a takeover; `None` if the packet engine cannot take the connection over.
    pub(crate) takeover: Option<Box<TakeoverParams>>,
}

impl<'c> Connector<'c> {
    /// A connector that leaves source address and port to the kernel.
    pub(crate) const fn new(limits: &'c Limits, resolver: &'c Resolver) -> Self {
        Self {
            limits,
            resolver,
            source_addr: None,
            offload: None,
            handshake_ack: HandshakeAck::Immediate,
        }
    }

    /// Connects to the first address of a back end that accepts a connection.
    ///
    /// # Errors
    ///
    /// The name does not resolve, `backends_allowed` excludes all addresses, or none accepts. The error is
    /// that of the last address.
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
            // Delays the ACK in `tcp_rcv_synsent_state_process` (net/ipv4/tcp_input.c), and no later one.
            set_tcp_quickack(&socket, false)?;
        }
        Ok(socket)
    }

    fn without_offload(&self, socket: Socket) -> io::Result<BackendSocket> {
        socket.apply_timeouts(self.limits.tcp_timeouts())?;
        Ok(BackendSocket { socket, takeover: None })
    }
}

/// Binds a socket to a source address that need not belong to this host (`IP_TRANSPARENT`).
fn bind_transparent(socket: &socket2::Socket, source_addr: IpAddr) -> io::Result<()> {
    sys::set_transparent(socket, source_addr.is_ipv6())?;
    // The kernel then chooses the port in connect(2): each pair of source and back end has all ports.
    sys::set_bind_address_no_port(socket)?;
    socket.bind(&SocketAddr::new(source_addr, 0).into())
}

impl OffloadableConnect<'_> {
    /// Connects from a leased port, with a SYN that offers no option that the client lacks. Returns `None`
    /// if no port can be leased or bound.
    async fn connect_from_leased_port(
        self,
        to: SocketAddr,
        connector: &Connector<'_>,
    ) -> io::Result<Option<BackendSocket>> {
        let Self { engine, client_endpoint } = self;
        // Another socket may use a leased port: one that listens, or one in TIME-WAIT.
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

/// Connects a non-blocking socket.
///
/// A back end on this host or on the same link has often answered when connect(2) returns. Such a socket
/// needs no event, so it is not registered with the runtime.
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
