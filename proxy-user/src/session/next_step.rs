//! What follows when the task that accepted a connection has done its part.

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

/// What becomes of a connection.
pub(crate) enum NextStep {
    /// It has ended.
    Done(Outcome),
    /// Nothing is left to do but to wait for the end, in these places.
    Offloaded(Box<OffloadedFlow>, Box<Permits>),
    /// It is to be carried on, in these places, where a core is free.
    Handover(Box<Handover>, Box<Permits>),
    /// It is to be terminated, in this place, where a core is free: that takes many times as long.
    Terminate(Box<PendingTermination>, ConnectionPermit),
}

impl From<Outcome> for NextStep {
    fn from(outcome: Outcome) -> Self {
        Self::Done(outcome)
    }
}

/// What a forwarded connection counts as, until this is dropped.
pub(crate) struct Permits {
    pub(crate) _client: ClientPermits,
    pub(crate) _backend: BackendGuards,
}

/// Ordinary traffic to a name of our own: an unread hello, and what answers it.
pub(crate) struct PendingTermination {
    pub(crate) client: TcpStream,
    pub(crate) hello: Box<ClientHello>,
    pub(crate) terminate: Arc<Terminate>,
    pub(crate) tls_config: Arc<ServerConfig>,
    /// `client_hello_timeout`
    pub(crate) handshake_timeout: Duration,
}
