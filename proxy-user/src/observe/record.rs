//! One record for each accepted connection, made at accept and told once, when it is dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tracing::debug;

use super::metrics::{Acme, Bytes, Ended, Refused};
use super::{AccessLog, Metrics};

/// What became of one connection. Dropping it is what counts and logs it, so each is told exactly
/// once, however its task ends.
#[derive(Debug)]
pub(crate) struct Record {
    observers: Arc<Observers>,
    begun: Instant,
    pub(crate) entry: Entry,
    pub(crate) outcome: Outcome,
    pub(crate) acme: Option<Acme>,
    /// Where the client wanted to go, if a proxy said so.
    pub(crate) destination: Option<SocketAddr>,
}

/// Where records go.
#[derive(Debug)]
pub(crate) struct Observers {
    pub(crate) metrics: Metrics,
    pub(crate) access_log: Option<Arc<AccessLog>>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Forwarded to its end; the engine's word for it.
    Carried(&'static str),
    /// A CA's validation was answered here.
    Answered,
    /// A handshake with us failed, or was not done in time.
    HandshakeFailed,
    /// Refused with an alert, for this reason.
    Refused(&'static str),
    /// The client left before its hello was whole.
    ClientGone,
    /// Reset because no byte moved for `idle_timeout`.
    Idle,
    /// Cut by the agent's own shutdown.
    Cut,
    /// The task died; a bug.
    Lost,
}

/// A back end.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Peer {
    Address(SocketAddr),
    /// `unix:` and its path.
    Unix(String),
}

/// The access log's line. Absent fields were never known.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// Seconds since 1970 at accept.
    pub(crate) time: f64,
    pub(crate) client: SocketAddr,
    /// The proxy that spoke for the client (PROXY protocol).
    pub(crate) proxy: Option<SocketAddr>,
    pub(crate) listener: SocketAddr,
    pub(crate) sni: Option<String>,
    pub(crate) alpn: Vec<String>,
    pub(crate) hello_bytes: Option<usize>,
    pub(crate) hello_records: Option<usize>,
    /// Seconds from accept to a whole hello.
    pub(crate) hello_time: Option<f64>,
    /// The first name of the route.
    pub(crate) route: Option<String>,
    pub(crate) backend: Option<Peer>,
    /// Seconds that connecting took.
    pub(crate) dial_time: Option<f64>,
    pub(crate) engine: Option<&'static str>,
    /// Why it was decided so.
    pub(crate) reason: Option<&'static str>,
    /// The alert sent, by its name in the IANA registry.
    pub(crate) alert: Option<&'static str>,
    /// Bytes delivered to the back end.
    pub(crate) up: u64,
    /// Bytes delivered to the client.
    pub(crate) down: u64,
    /// Seconds from accept to the end.
    pub(crate) duration: f64,
    pub(crate) outcome: &'static str,
}

impl Record {
    pub(crate) fn open(
        observers: Arc<Observers>,
        client: SocketAddr,
        listener: SocketAddr,
    ) -> Self {
        observers.metrics.accepted.inc();
        observers.metrics.open.inc();
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let entry = Entry {
            time: since_1970.as_ref().map_or(0.0, Duration::as_secs_f64),
            client,
            proxy: None,
            listener,
            sni: None,
            alpn: Vec::new(),
            hello_bytes: None,
            hello_records: None,
            hello_time: None,
            route: None,
            backend: None,
            dial_time: None,
            engine: None,
            reason: None,
            alert: None,
            up: 0,
            down: 0,
            duration: 0.0,
            outcome: "",
        };
        Self {
            observers,
            begun: Instant::now(),
            entry,
            outcome: Outcome::Lost,
            acme: None,
            destination: None,
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.observers.metrics
    }

    /// Whether somebody reads more of it than what is counted.
    pub(crate) fn has_readers(&self) -> bool {
        self.observers.access_log.is_some()
    }

    /// Time since accept.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    fn count(&self) {
        let Metrics { open, ended, refused, acme, bytes, .. } = &self.observers.metrics;
        open.dec();
        ended.get_or_create(&Ended { outcome: self.outcome.name() }).inc();
        if let Outcome::Refused(reason) = self.outcome {
            refused.get_or_create(&Refused { reason }).inc();
        }
        if let Some(labels) = &self.acme {
            acme.get_or_create(labels).inc();
        }
        if let (Some(route), Some(engine)) = (&self.entry.route, self.entry.engine) {
            for (direction, n) in [("up", self.entry.up), ("down", self.entry.down)] {
                let labels = Bytes { route: route.clone(), engine, direction };
                bytes.get_or_create(&labels).inc_by(n);
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.entry.duration = self.age().as_secs_f64();
        self.entry.outcome = self.outcome.name();
        self.count();
        let Entry { client, sni, route, engine, reason, up, down, outcome, .. } = &self.entry;
        debug!(%client, sni, route, engine, reason, up, down, outcome, age = ?self.age(), "ended");
        if let Some(log) = &self.observers.access_log {
            log.write(&self.entry, &self.observers.metrics);
        }
    }
}

impl Outcome {
    /// A short word for counters and logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Carried(end) => end,
            Self::Answered => "answered",
            Self::HandshakeFailed => "handshake_failed",
            Self::Refused(_) => "refused",
            Self::ClientGone => "client_gone",
            Self::Idle => "idle",
            Self::Cut => "cut",
            Self::Lost => "lost",
        }
    }
}
