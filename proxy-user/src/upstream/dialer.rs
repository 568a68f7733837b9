//! Connects to a back end of a route: to the next one, if one does not answer.
//!
//! Another attempt loses no byte: the hello is still unread in the client's socket.

use std::io;
use std::net::IpAddr;

use snisplit_common::starttls::{SSL_ACCEPTED, SSL_REQUEST};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tracing::debug;

use crate::config::{Backend, BackendAddr, Route};
use crate::engine::Socket;
use crate::engine::packet::TakeoverParams;
use crate::telemetry::metrics;
use crate::telemetry::{BackendEndpoint, Metrics};
use crate::upstream::connect::{self, Connector, HandshakeAck};
use crate::upstream::first_byte::HelloProbe;
use crate::upstream::loop_detector::{LoopDetector, LoopGuard};
use crate::upstream::select::{Backends, ConnectionGuard, SelectedBackend};

/// No back end of the route answered.
pub(crate) struct NoBackend;

/// Connects to the back ends of routes.
pub(crate) struct BackendDialer<'d> {
    pub(crate) connector: Connector<'d>,
    pub(crate) loop_detector: &'d LoopDetector,
    pub(crate) backends: &'d Backends,
    pub(crate) metrics: &'d Metrics,
}

/// What a back end gets before the bytes in the client's socket.
#[derive(Clone, Copy)]
pub(crate) struct BackendPreamble<'p> {
    /// PROXY header; empty for none.
    pub(crate) proxy_header: &'p [u8],
    pub(crate) replay: StarttlsReplay,
    /// The hello, if a back end must answer it before the agent chooses it (`first_byte_timeout`).
    pub(crate) probe: Option<HelloProbe<'p>>,
    /// Whether bytes wait in the client's socket.
    pub(crate) client_bytes_follow: bool,
}

impl BackendPreamble<'_> {
    /// Piggybacks the ACK if bytes follow at once.
    pub(crate) fn handshake_ack(self) -> HandshakeAck {
        if self.client_bytes_follow || self.has_bytes() {
            HandshakeAck::Piggybacked
        } else {
            HandshakeAck::Immediate
        }
    }

    /// Whether the preamble has bytes to send.
    fn has_bytes(self) -> bool {
        !self.proxy_header.is_empty() || self.replay != StarttlsReplay::None || self.probe.is_some()
    }
}

/// A connection to a back end, and the guards that it holds.
pub(crate) struct BackendConn {
    pub(crate) socket: Socket,
    /// Parameters of a takeover; `None` if the packet engine cannot take the connection over.
    pub(crate) takeover: Option<Box<TakeoverParams>>,
    /// The address in the access log.
    pub(crate) label: BackendEndpoint,
    /// Bytes of the client that the back end has already: its hello, if the preamble had a probe.
    pub(crate) bytes_sent: usize,
    pub(crate) guards: BackendGuards,
}

/// Guards of a connection to a back end, held until it ends.
pub(crate) struct BackendGuards {
    _connection: ConnectionGuard,
    /// Registration of the local address, if the back end is on this host: it may be a listener of the
    /// agent.
    _loop: Option<LoopGuard>,
}

impl BackendDialer<'_> {
    /// Connects to the first back end that accepts `preamble`, in the order of `balance`.
    ///
    /// Tries every address of every back end once. `connect_timeout` bounds each back end, name resolution
    /// included.
    ///
    /// # Errors
    ///
    /// No back end accepted the preamble, or the client closed.
    pub(crate) async fn connect_any(
        &self,
        route: &Route,
        client: IpAddr,
        preamble: BackendPreamble<'_>,
    ) -> Result<BackendConn, NoBackend> {
        let mut candidates = self.backends.select_order(route, client);
        // A back end of the other address family has not failed, so its health stays as it is.
        candidates.retain(|candidate| self.can_reach(candidate.backend));
        let last = candidates.len().saturating_sub(1);
        for (index, candidate) in candidates.iter().enumerate() {
            // `first_byte_timeout` does not apply to the last back end: there is no other one to try.
            let probe = preamble.probe.filter(|_| index < last);
            let result = self.connect_one(candidate, BackendPreamble { probe, ..preamble }).await;
            if result.is_err() && probe.is_some_and(HelloProbe::client_closed) {
                return Err(NoBackend);
            }
            self.backends.record_connect(candidate, result.is_ok());
            match result {
                Ok(backend_conn) => return Ok(backend_conn),
                Err(error) => {
                    let backend = candidate.backend;
                    debug!(route = route.label, %backend, %error, "back end connect failed");
                    let labels = metrics::BackendLabels { backend: backend.to_string() };
                    self.metrics.backend_connect_failures.get_or_create(&labels).inc();
                }
            }
        }
        Err(NoBackend)
    }

    /// Whether the source address has the family of the back end's address.
    fn can_reach(&self, backend: &Backend) -> bool {
        match (self.connector.source_addr, &backend.address) {
            (Some(source_addr), BackendAddr::Ip(backend_addr)) => {
                source_addr.is_ipv4() == backend_addr.is_ipv4()
            }
            (Some(_), BackendAddr::Host(..) | BackendAddr::Unix(_)) | (None, _) => true,
        }
    }

    async fn connect_one(
        &self,
        selected: &SelectedBackend<'_>,
        preamble: BackendPreamble<'_>,
    ) -> io::Result<BackendConn> {
        let connecting = self.connect_with_preamble(selected, preamble);
        let mut backend_conn = timeout(self.connector.limits.connect_timeout, connecting).await??;
        if let Some(probe) = preamble.probe {
            probe.send_and_wait(&mut backend_conn.socket).await?;
            backend_conn.bytes_sent = probe.consume()?;
        }
        Ok(backend_conn)
    }

    async fn connect_with_preamble(
        &self,
        selected: &SelectedBackend<'_>,
        preamble: BackendPreamble<'_>,
    ) -> io::Result<BackendConn> {
        let connect::BackendSocket { mut socket, takeover } =
            self.connector.connect(selected.backend).await?;
        let addresses = match &takeover {
            Some(params) => Some(params.addresses()),
            None => socket.addresses()?,
        };
        let (label, loop_guard) = match addresses {
            None => (BackendEndpoint::Unix(selected.backend.to_string()), None),
            Some((local_addr, peer_addr)) => (
                BackendEndpoint::Address(peer_addr),
                self.loop_detector.register(local_addr, peer_addr),
            ),
        };
        if preamble.has_bytes() {
            socket = socket.register()?;
            socket.write_all(preamble.proxy_header).await?;
            preamble.replay.send_to(&mut socket).await?;
        }
        Ok(BackendConn {
            socket,
            takeover,
            label,
            bytes_sent: 0,
            guards: BackendGuards {
                _connection: self.backends.track_connection(selected),
                _loop: loop_guard,
            },
        })
    }
}

/// STARTTLS request that the agent has answered, and that the back end needs too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StarttlsReplay {
    None,
    /// PostgreSQL's SSLRequest. The back end must accept it.
    SslRequest,
}

impl StarttlsReplay {
    async fn send_to(self, socket: &mut Socket) -> io::Result<()> {
        if self == Self::None {
            return Ok(());
        }
        socket.write_all(&SSL_REQUEST).await?;
        match socket.read_u8().await? {
            SSL_ACCEPTED => Ok(()),
            _ => Err(io::Error::other("the back end speaks no TLS (ssl = off?)")),
        }
    }
}
