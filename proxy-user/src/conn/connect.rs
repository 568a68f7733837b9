//! One connection to one back end, wherever it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::resolve::Resolver;
use crate::config::{Backend, Limits, Place};
use crate::engine::Socket;
use crate::engine::packet::{Lease, Packet, SynOptions};
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
}

/// A connection that is to fit to a client's.
#[derive(Clone, Copy)]
pub(crate) struct Fitting<'c> {
    pub(crate) engine: &'c Packet,
    pub(crate) offer: SynOptions,
}

/// A connection, and the port that is ours while it lasts.
pub(crate) struct Connected {
    pub(crate) socket: Socket,
    pub(crate) lease: Option<Lease>,
}

impl From<Socket> for Connected {
    fn from(socket: Socket) -> Self {
        Self { socket, lease: None }
    }
}

impl<'c> Connector<'c> {
    /// Comes from an address and a port that the kernel chooses.
    pub(crate) const fn plain(limits: &'c Limits, resolver: &'c Resolver) -> Self {
        Self { limits, resolver, from: None, packet: None }
    }

    /// Tries the addresses of a back end one after the other.
    pub(crate) async fn connect(&self, backend: &Backend) -> io::Result<Connected> {
        let addresses = match &backend.place {
            Place::Unix(path) => return Ok(Socket::Unix(UnixStream::connect(path).await?).into()),
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
        let stream = match (self.from, self.packet) {
            (Some(from), _) => self.dial_from(from, to).await?,
            (None, Some(fitting)) => return fitting.dial(to).await,
            (None, None) => TcpStream::connect(to).await?,
        };
        Ok(Socket::Tcp(stream).into())
    }

    async fn dial_from(&self, from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = socket2::Socket::new(
            Domain::for_address(to),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        sys::set_transparent(&socket, to.is_ipv6())?;
        // The port is chosen when the back end is known: 60,000 for each client and back end.
        sys::set_bind_address_no_port(&socket)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        TcpSocket::from_std_stream(socket.into()).connect(to).await
    }

    /// What keeps a connection from staying when its peer is gone.
    pub(super) fn keep_alive(&self, socket: &Socket) -> io::Result<()> {
        let Socket::Tcp(stream) = socket else { return Ok(()) };
        let socket = SockRef::from(stream);
        if let Some(idle) = self.limits.keepalive {
            socket.set_tcp_keepalive(&keepalive(idle))?;
        }
        match self.limits.user_timeout {
            Some(limit) => socket.set_tcp_user_timeout(Some(limit)),
            None => Ok(()),
        }
    }
}

impl Fitting<'_> {
    /// Comes from a port of ours, and offers no more than the client can take.
    async fn dial(self, to: SocketAddr) -> io::Result<Connected> {
        // Somebody may listen on one, or wait on it for what is late.
        for mut lease in (0..PORTS_TRIED).map_while(|_| self.engine.lease(to)) {
            let socket = socket2::Socket::new(
                Domain::for_address(to),
                Type::STREAM.nonblocking(),
                Some(Protocol::TCP),
            )?;
            socket.set_reuse_address(true)?;
            let any = if to.is_ipv4() { IpAddr::V4(0.into()) } else { IpAddr::V6(0.into()) };
            if socket.bind(&SocketAddr::new(any, lease.port()).into()).is_err() {
                continue;
            }
            let Ok(_restrained) = self.engine.restrain(&mut lease, self.offer) else { break };
            match TcpSocket::from_std_stream(socket.into()).connect(to).await {
                Ok(stream) => {
                    return Ok(Connected { socket: Socket::Tcp(stream), lease: Some(lease) });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Socket::Tcp(TcpStream::connect(to).await?).into())
    }
}

/// Ports of ours that are tried before one of the kernel's.
const PORTS_TRIED: usize = 3;

/// The first probe after `idle`, then three more in as much time again.
pub(super) fn keepalive(idle: Duration) -> TcpKeepalive {
    let between = (idle / 4).max(Duration::from_secs(1));
    TcpKeepalive::new().with_time(idle).with_interval(between).with_retries(4)
}
