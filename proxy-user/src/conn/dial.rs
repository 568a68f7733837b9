//! Connects to a back end of the route, the next one if one does not answer.
//!
//! Trying again is safe: the hello is still unread in the client's socket, nothing was sent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use snisplit_common::starttls::{SSL_REQUEST, WILLING};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tracing::debug;

use super::admit::{Door, OwnAddress};
use super::backends::{Backends, Choice, Connected};
use crate::config::{Backend, Limits, Place, Route};
use crate::observe::Metrics;
use crate::observe::metrics;

/// No back end of the route answered.
pub(super) struct NoBackend;

/// What dialling goes by.
pub(super) struct Dial<'d> {
    pub(super) limits: &'d Limits,
    pub(super) door: &'d Door,
    pub(super) backends: &'d Backends,
    pub(super) metrics: &'d Metrics,
}

/// A connection to a back end, and what must be kept as long as it lasts.
pub(super) struct Dialled {
    pub(super) stream: TcpStream,
    pub(super) _counted: Connected,
    /// A back end on this very host could be ourselves: its connection is known by our address.
    pub(super) _own: Option<OwnAddress>,
}

impl Dial<'_> {
    /// Tries every address of every back end once, in the order that `balance` gives.
    /// `dial_timeout` bounds each back end, name resolution included. The first to take `preface`
    /// is it.
    pub(super) async fn backend(
        &self,
        route: &Route,
        client: IpAddr,
        preface: (&[u8], Replay),
    ) -> Result<Dialled, NoBackend> {
        for choice in self.backends.order(route, client) {
            let backend = choice.backend;
            let tried = timeout(self.limits.dial_timeout, self.greet(&choice, preface)).await;
            self.backends.dialled(&choice, matches!(tried, Ok(Ok(_))));
            match tried.unwrap_or_else(|late| Err(late.into())) {
                Ok(dialled) => return Ok(dialled),
                Err(error) => {
                    debug!(route = route.label, %backend, %error, "dial failed");
                    let labels = metrics::Dial { backend: backend.to_string() };
                    self.metrics.dial_failures.get_or_create(&labels).inc();
                }
            }
        }
        Err(NoBackend)
    }

    async fn greet(
        &self,
        choice: &Choice<'_>,
        (preface, replay): (&[u8], Replay),
    ) -> io::Result<Dialled> {
        let mut stream = connect(choice.backend, self.limits).await?;
        self.keep_alive(&stream)?;
        let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let _own = (own.ip() == peer.ip()).then(|| self.door.dials_from(own));
        stream.write_all(preface).await?;
        replay.to(&mut stream).await?;
        Ok(Dialled { stream, _counted: self.backends.connect(choice), _own })
    }

    fn keep_alive(&self, stream: &TcpStream) -> io::Result<()> {
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

/// What a back end must hear before the hello because the client said it to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replay {
    Nothing,
    /// PostgreSQL's request for TLS; the back end must be willing.
    SslRequest,
}

impl Replay {
    async fn to(self, stream: &mut TcpStream) -> io::Result<()> {
        if self == Self::Nothing {
            return Ok(());
        }
        stream.write_all(&SSL_REQUEST).await?;
        match stream.read_u8().await? {
            WILLING => Ok(()),
            _ => Err(io::Error::other("the back end speaks no TLS (ssl = off?)")),
        }
    }
}

/// Tries the addresses of a back end one after the other.
pub(crate) async fn connect(backend: &Backend, limits: &Limits) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = match &backend.place {
        Place::Address(address) => vec![*address],
        Place::Name(host, port) => lookup_host((host.as_str(), *port)).await?.collect(),
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        if !limits.allows_backend(address.ip()) {
            last = io::Error::other(format!("{address} is outside limits.backends_allowed"));
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The first probe after `idle`, then three more in as much time again.
pub(crate) fn keepalive(idle: Duration) -> TcpKeepalive {
    let between = (idle / 4).max(Duration::from_secs(1));
    TcpKeepalive::new().with_time(idle).with_interval(between).with_retries(4)
}
