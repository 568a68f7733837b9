//! What follows when the task that accepted a connection has decided it.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use snisplit_common::client_hello::ClientHello;
use tokio::net::TcpStream;

use crate::config::Terminate;
use crate::downstream::admission::{ClientPermits, ConnectionPermit};
use crate::engine::Handover;
use crate::engine::packet::OffloadedFlow;
use crate::telemetry::Outcome;
use crate::upstream::dialer::BackendGuards;

/// What the task that accepted a connection hands to another one.
pub(crate) enum NextStep {
    /// The connection has ended.
    Done(Outcome),
    /// The packet engine's programs carry the flow. A task waits for its end.
    Offloaded(Box<OffloadedFlow>, Box<Permits>),
    /// A task of the main runtime continues the flow.
    Handover(Box<Handover>, Box<Permits>),
    /// A task of the main runtime terminates TLS: a handshake takes many times the CPU time of a forwarded
    /// connection.
    Terminate(Box<PendingTermination>, ConnectionPermit),
}

impl From<Outcome> for NextStep {
    fn from(outcome: Outcome) -> Self {
        Self::Done(outcome)
    }
}

/// Permits and guards of a forwarded connection, held until it ends.
pub(crate) struct Permits {
    pub(crate) _client: ClientPermits,
    pub(crate) _backend: BackendGuards,
}

/// A connection to terminate. Its hello is unread.
pub(crate) struct PendingTermination {
    pub(crate) client: TcpStream,
    pub(crate) hello: Box<ClientHello>,
    pub(crate) terminate: Arc<Terminate>,
    pub(crate) tls_config: Arc<ServerConfig>,
    /// Maximum time of the TLS handshake: `client_hello_timeout` of the listener.
    pub(crate) handshake_timeout: Duration,
}
