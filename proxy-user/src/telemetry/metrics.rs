//! The metrics of the agent, and their help texts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use snisplit_common::decide::Decision;

/// All metrics; cloning shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) connections_accepted: Counter,
    pub(crate) connections_open: Gauge,
    pub(crate) accept_errors: Counter,
    pub(crate) connections_ended: Family<EndedLabels, Counter>,
    pub(crate) connections_rejected: Family<RejectedLabels, Counter>,
    pub(crate) acme_validations: Family<AcmeLabels, Counter>,
    pub(crate) forwarded_bytes: Family<BytesLabels, Counter<u64, AtomicU64>>,
    pub(crate) engine_declined: Family<DeclinedLabels, Counter>,
    pub(crate) engine_handovers: Family<HandoverLabels, Counter>,
    pub(crate) backend_connect_failures: Family<BackendLabels, Counter>,
    pub(crate) backend_up: Family<BackendLabels, Gauge>,
    pub(crate) dns_stale_answers: Family<HostLabels, Counter>,
    pub(crate) client_hello_seconds: LatencyHistogram,
    pub(crate) backend_connect_seconds: LatencyHistogram,
    pub(crate) access_log_dropped: Counter,
    pub(crate) reloads: Family<ReloadLabels, Counter>,
}

/// Labels of `snisplit_config_reloads_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReloadLabels {
    pub(crate) result: &'static str,
}

/// Labels of `snisplit_connections_ended_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct EndedLabels {
    pub(crate) outcome: &'static str,
}

/// Labels of `snisplit_connections_rejected_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RejectedLabels {
    pub(crate) reason: &'static str,
}

/// Labels of `snisplit_acme_validations_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AcmeLabels {
    pub(crate) class: &'static str,
    pub(crate) action: &'static str,
    pub(crate) reason: &'static str,
}

impl AcmeLabels {
    pub(crate) const fn new<R, H>(decision: &Decision<'_, R, H>) -> Self {
        Self {
            class: decision.name_class.label(),
            action: decision.action.label(),
            reason: decision.reason.label(),
        }
    }
}

/// Labels of `snisplit_forwarded_bytes_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct BytesLabels {
    pub(crate) route: String,
    pub(crate) engine: &'static str,
    pub(crate) direction: &'static str,
}

/// Labels of `snisplit_engine_declined_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DeclinedLabels {
    pub(crate) engine: &'static str,
    pub(crate) reason: &'static str,
}

/// Labels of `snisplit_engine_handovers_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HandoverLabels {
    pub(crate) engine: &'static str,
}

/// Labels of `snisplit_backend_connect_failures_total` and `snisplit_backend_up`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct BackendLabels {
    pub(crate) backend: String,
}

/// Labels of `snisplit_dns_stale_answers_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HostLabels {
    pub(crate) host: String,
}

/// Histogram of times, in seconds.
#[derive(Clone, Debug)]
pub(crate) struct LatencyHistogram(Histogram);

impl Default for LatencyHistogram {
    /// Creates 18 buckets from 100 µs, a TCP handshake within a LAN, to 13 s.
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.0001, 2.0, 18)))
    }
}

impl LatencyHistogram {
    pub(crate) fn observe(&self, seconds: f64) {
        self.0.observe(seconds);
    }
}

impl Metrics {
    /// Encodes all metrics in the OpenMetrics text format.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        match text::encode(&mut text, &self.registry()) {
            Ok(()) => text,
            Err(std::fmt::Error) => String::from("# EOF\n"),
        }
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("snisplit");
        self.register_connection_metrics(&mut registry);
        self.register_backend_metrics(&mut registry);
        registry.register(
            "access_log_dropped",
            "Access log lines dropped because the queue was full",
            self.access_log_dropped.clone(),
        );
        registry.register(
            "config_reloads",
            "Reloads of the configuration, by result",
            self.reloads.clone(),
        );
        registry
    }

    fn register_connection_metrics(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register("connections_accepted", "Connections accepted", m.connections_accepted);
        registry.register(
            "connections_open",
            "Connections that have not ended",
            m.connections_open,
        );
        registry.register(
            "accept_errors",
            "Errors of accept(2), such as a full descriptor table",
            m.accept_errors,
        );
        registry.register(
            "connections_ended",
            "Connections that ended, by outcome",
            m.connections_ended,
        );
        registry.register(
            "connections_rejected",
            "Connections rejected, by reason",
            m.connections_rejected,
        );
        registry.register(
            "acme_validations",
            "ACME validations (TLS-ALPN-01 and HTTP-01), by class of name, action and reason",
            m.acme_validations,
        );
        registry.register(
            "forwarded_bytes",
            "Bytes delivered, by route, engine and direction; counted when the connection ends",
            m.forwarded_bytes,
        );
        registry.register(
            "engine_declined",
            "Flows that an engine declined, by engine and reason",
            m.engine_declined,
        );
        registry.register(
            "engine_handovers",
            "Handovers of running flows to another engine",
            m.engine_handovers,
        );
        registry.register_with_unit(
            "client_hello",
            "Time from accept to a complete ClientHello",
            Unit::Seconds,
            m.client_hello_seconds.0,
        );
    }

    fn register_backend_metrics(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register(
            "backend_connect_failures",
            "Failed attempts to connect to a back end",
            m.backend_connect_failures,
        );
        registry.register("backend_up", "Whether a back end is considered up", m.backend_up);
        registry.register_with_unit(
            "backend_connect",
            "Time to connect to a back end, failed attempts included",
            Unit::Seconds,
            m.backend_connect_seconds.0,
        );
        registry.register(
            "dns_stale_answers",
            "Uses of expired DNS answers because no name server answered (RFC 8767)",
            m.dns_stale_answers,
        );
    }
}
