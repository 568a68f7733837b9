//! One connection to one back end, wherever it is.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_quickack;
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::net::{TcpStream, UnixStream};

use super::resolve::Resolver;
use crate::config::{Backend, Limits, Place};
use crate::engine::Socket;
use crate::engine::packet::{Front, Packet, Terms};
use crate::sys;

/// What connecting goes by.
#[derive(Clone, Copy)]
pub(crate) struct Connector<'c> {
    pub(crate) limits: &'c Limits,
    pub(crate) resolver: &'c Resolver,
    /// The address to come from, which need not be ours (`source = "client"`).
    pub(crate) from: Option<IpAddr>,
    /// For a flow that the packet engine may carry.
    pub(crate) packet: Option<Fitting<'c>>,
    /// What the back end hears of us first.
    pub(crate) first: First,
}

/// What a back end hears when it has answered a SYN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// That its answer has arrived.
    Acknowledgement,
    /// What we have for it, which says so too: a packet less, and a back end that is woken to accept(2) finds
    /// something to read. Should it not be sent within 200 ms (`TCP_DELACK_MAX`), it is acknowledged alone.
    Bytes,
}

/// A connection that is to fit to a client's.
#[derive(Clone, Copy)]
pub(crate) struct Fitting<'c> {
    pub(crate) engine: &'c Packet,
    pub(crate) front: Front,
}

/// A connection, and what the packet engine must know of it, if that may have it.
pub(crate) struct Connected {
    pub(crate) socket: Socket,
    pub(crate) terms: Option<Box<Terms>>,
}

impl<'c> Connector<'c> {
    /// Comes from an address and a port that the kernel chooses.
    pub(crate) const fn plain(limits: &'c Limits, resolver: &'c Resolver) -> Self {
        Self { limits, resolver, from: None, packet: None, first: First::Acknowledgement }
    }

    /// Tries the addresses of a back end one after the other.
    pub(crate) async fn connect(&self, backend: &Backend) -> io::Result<Connected> {
        let addresses = match &backend.place {
            Place::Unix(path) => {
                return self.plain_of(Socket::Unix(UnixStream::connect(path).await?));
            }
            Place::Address(address) => vec![*address],
            Place::Name(host, port) => self.resolver.addresses(host, *port).await?,
        };
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            if !self.limits.allows_backend(address.ip()) {
                last = io::Error::other(format!("{address} is outside limits.backends_allowed"));
                continue;
            }
            match self.dial(address).await {
                Ok(connected) => return Ok(connected),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial(&self, to: SocketAddr) -> io::Result<Connected> {
        if let (None, Some(fitting)) = (self.from, self.packet)
            && let Some(connected) = fitting.dial(to, self).await?
        {
            return Ok(connected);
        }
        let socket = self.tcp(to)?;
        if let Some(from) = self.from {
            bind(&socket, from)?;
        }
        self.plain_of(connect(socket, to).await?.watched()?)
    }

    fn tcp(&self, to: SocketAddr) -> io::Result<socket2::Socket> {
        let (domain, kind) = (Domain::for_address(to), Type::STREAM.nonblocking());
        let socket = socket2::Socket::new(domain, kind, Some(Protocol::TCP))?;
        if self.first == First::Bytes {
            // `tcp_rcv_synsent_state_process`, net/ipv4/tcp_input.c; not for longer than that.
            set_tcp_quickack(&socket, false)?;
        }
        Ok(socket)
    }

    fn plain_of(&self, socket: Socket) -> io::Result<Connected> {
        socket.keep_up(self.limits.upkeep())?;
        Ok(Connected { socket, terms: None })
    }
}

/// Has it come from that address, which need not be ours.
fn bind(socket: &socket2::Socket, from: IpAddr) -> io::Result<()> {
    sys::set_transparent(socket, from.is_ipv6())?;
    // The port is chosen when the back end is known: 60,000 for each client and back end.
    sys::set_bind_address_no_port(socket)?;
    socket.bind(&SocketAddr::new(from, 0).into())
}

impl Fitting<'_> {
    /// Comes from a port of ours, and offers no more than the client can take. `None` without such a
    /// port.
    async fn dial(
        self,
        to: SocketAddr,
        connector: &Connector<'_>,
    ) -> io::Result<Option<Connected>> {
        let Self { engine, front } = self;
        // Somebody may listen on one, or wait on it for what is late.
        for mut lease in (0..PORTS_TRIED).map_while(|_| engine.lease(to)) {
            let socket = connector.tcp(to)?;
            socket.set_reuse_address(true)?;
            let any = if to.is_ipv4() { IpAddr::V4(0.into()) } else { IpAddr::V6(0.into()) };
            if socket.bind(&SocketAddr::new(any, lease.port()).into()).is_err() {
                continue;
            }
            let Ok(_restrained) = engine.restrain(&mut lease, &front) else { break };
            match connect(socket, to).await {
                Ok(socket) => {
                    let own = SockRef::from(&socket).local_addr()?.as_socket().unwrap_or(to);
                    let upkeep = connector.limits.upkeep();
                    let terms = Box::new(Terms { front, own, lease, upkeep });
                    return Ok(Some(Connected { socket, terms: Some(terms) }));
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
async fn connect(socket: socket2::Socket, to: SocketAddr) -> io::Result<Socket> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
            return Err(error);
        }
        Ok(()) | Err(_) => {}
    }
    if socket.peer_addr().is_ok() {
        return Ok(Socket::Fresh(socket.into()));
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    stream.take_error()?.map_or(Ok(()), Err)?;
    Ok(Socket::Tcp(stream))
}

/// Ports of ours that are tried before one of the kernel's.
const PORTS_TRIED: usize = 3;
