//! One connection to one back end, wherever it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::resolve::Resolver;
use crate::config::{Backend, Limits, Place};
use crate::engine::Socket;
use crate::sys;

/// What connecting goes by.
#[derive(Clone, Copy)]
pub(crate) struct Connector<'c> {
    pub(crate) limits: &'c Limits,
    pub(crate) resolver: &'c Resolver,
    /// The address to come from, which need not be ours (`source = "client"`).
    pub(crate) from: Option<IpAddr>,
}

impl Connector<'_> {
    /// Tries the addresses of a back end one after the other.
    pub(crate) async fn connect(&self, backend: &Backend) -> io::Result<Socket> {
        let addresses = match &backend.place {
            Place::Unix(path) => return Ok(Socket::Unix(UnixStream::connect(path).await?)),
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
                Ok(stream) => return Ok(Socket::Tcp(stream)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let Some(from) = self.from else { return TcpStream::connect(to).await };
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

/// The first probe after `idle`, then three more in as much time again.
pub(super) fn keepalive(idle: Duration) -> TcpKeepalive {
    let between = (idle / 4).max(Duration::from_secs(1));
    TcpKeepalive::new().with_time(idle).with_interval(between).with_retries(4)
}
