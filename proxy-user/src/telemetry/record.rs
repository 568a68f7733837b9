//! The record of an accepted connection. It is created at accept, and counted and logged when it is
//! dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tracing::debug;

use super::access_log::{AccessLog, AccessLogEntry};
use super::metrics::{AcmeLabels, BytesLabels, EndedLabels, Metrics, RejectedLabels};
use super::outcome::Outcome;

/// Record of one connection. Dropping it counts and logs the connection: exactly once, however its task
/// ends.
#[derive(Debug)]
pub(crate) struct Record {
    telemetry: Arc<Telemetry>,
    accepted_at: Instant,
    pub(crate) entry: AccessLogEntry,
    pub(crate) outcome: Outcome,
    pub(crate) acme: Option<AcmeLabels>,
    /// Destination address in the PROXY header.
    pub(crate) destination: Option<SocketAddr>,
}

/// Metrics and access log that all records are written to.
#[derive(Debug)]
pub(crate) struct Telemetry {
    pub(crate) metrics: Metrics,
    pub(crate) access_log: Option<Arc<AccessLog>>,
}

impl Record {
    pub(crate) fn open(
        telemetry: Arc<Telemetry>,
        client: SocketAddr,
        listener: SocketAddr,
    ) -> Self {
        telemetry.metrics.connections_accepted.inc();
        telemetry.metrics.connections_open.inc();
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let entry = AccessLogEntry {
            timestamp: since_1970.as_ref().map_or(0.0, Duration::as_secs_f64),
            client,
            proxy: None,
            listener,
            sni: None,
            alpn: Vec::new(),
            alpn_omitted: None,
            client_hello_bytes: None,
            client_hello_records: None,
            client_hello_seconds: None,
            route: None,
            backend: None,
            connect_seconds: None,
            engine: None,
            reason: None,
            alert: None,
            bytes_up: 0,
            bytes_down: 0,
            duration_seconds: 0.0,
            outcome: "",
        };
        Self {
            telemetry,
            accepted_at: Instant::now(),
            entry,
            outcome: Outcome::InternalError,
            acme: None,
            destination: None,
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.telemetry.metrics
    }

    /// Returns whether there is an access log. Metrics do not need every field of the entry.
    pub(crate) fn access_log_enabled(&self) -> bool {
        self.telemetry.access_log.is_some()
    }

    /// Returns the time since accept.
    pub(crate) fn elapsed(&self) -> Duration {
        self.accepted_at.elapsed()
    }

    fn update_metrics(&self) {
        let Metrics {
            connections_open,
            connections_ended,
            connections_rejected,
            acme_validations,
            forwarded_bytes,
            ..
        } = &self.telemetry.metrics;
        connections_open.dec();
        connections_ended.get_or_create(&EndedLabels { outcome: self.outcome.label() }).inc();
        if let Outcome::Rejected(reason) = self.outcome {
            let labels = RejectedLabels { reason: reason.label() };
            connections_rejected.get_or_create(&labels).inc();
        }
        if let Some(labels) = &self.acme {
            acme_validations.get_or_create(labels).inc();
        }
        if let (Some(route), Some(engine)) = (&self.entry.route, self.entry.engine) {
            for (direction, n) in [("up", self.entry.bytes_up), ("down", self.entry.bytes_down)] {
                let labels = BytesLabels { route: route.clone(), engine, direction };
                forwarded_bytes.get_or_create(&labels).inc_by(n);
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.entry.duration_seconds = self.elapsed().as_secs_f64();
        self.entry.outcome = self.outcome.label();
        self.update_metrics();
        let AccessLogEntry {
            client,
            sni,
            route,
            engine,
            reason,
            bytes_up,
            bytes_down,
            outcome,
            ..
        } = &self.entry;
        debug!(%client, sni, route, engine, reason, bytes_up, bytes_down, outcome, duration = ?self.elapsed(), "connection ended");
        if let Some(log) = &self.telemetry.access_log {
            log.write(&self.entry, &self.telemetry.metrics);
        }
    }
}
