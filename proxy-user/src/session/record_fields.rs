//! Fields of the record that the steps of a connection set.

use std::time::Instant;

use snisplit_common::client_hello::{ClientHello, Sni};
use snisplit_common::decide::{Action, Decision};
use snisplit_common::proxy_protocol::Header;

use crate::config::Route;
use crate::session::certificate_view::TlsMaterial;
use crate::telemetry::metrics::AcmeLabels;
use crate::telemetry::{AcmeLog, Record};

/// Sets the addresses that a trusted proxy sent. Without addresses (`LOCAL`, `UNKNOWN`) the client is the
/// proxy itself.
pub(crate) fn set_proxy_header(header: &Header, record: &mut Record) {
    record.entry.proxy = Some(record.entry.client);
    if let Some((source, destination)) = header.addresses {
        record.entry.client = source;
        record.destination = Some(destination);
    }
}

/// Sets the fields of the hello.
pub(crate) fn set_client_hello(hello: &ClientHello, record: &mut Record) {
    let seconds = record.elapsed().as_secs_f64();
    record.metrics().client_hello_seconds.observe(seconds);
    record.entry.client_hello_seconds = Some(seconds);
    record.entry.client_hello_bytes = Some(hello.wire_len);
    record.entry.client_hello_records = Some(hello.records);
    if record.access_log_enabled() {
        let alpn = hello.alpn.iter();
        record.entry.alpn = alpn.map(|protocol| protocol.escape_ascii().to_string()).collect();
        record.entry.alpn_omitted = Some(hello.alpn_omitted).filter(|&omitted| omitted > 0);
    }
    record.entry.sni = match &hello.sni {
        Sni::Name(name) => Some(name.to_string()),
        Sni::Absent | Sni::Invalid(_) => None,
    };
}

/// Sets reason and route. Counts and logs the decision if the connection is a validation.
pub(crate) fn set_decision(
    hello: &ClientHello,
    decision: &Decision<'_, Route, TlsMaterial>,
    acme_log: &AcmeLog,
    record: &mut Record,
) {
    record.entry.reason = Some(decision.reason.label());
    record.entry.route = match &decision.action {
        Action::Terminate(TlsMaterial::Certificate(terminate, _)) => {
            Some(terminate.route.label.clone())
        }
        Action::Forward(route) => Some(route.label.clone()),
        Action::Terminate(TlsMaterial::Challenge(_)) | Action::Reject(_) => None,
    };
    if hello.is_acme_validation() {
        let acme = AcmeLabels::new(decision);
        let (sni, route) = (record.entry.sni.as_deref(), record.entry.route.as_deref());
        acme_log.log(sni, route, &acme, "tls-alpn-01");
        record.acme = Some(acme);
    }
}

/// Sets the time to connect, failed attempts included.
pub(crate) fn set_connect_time(started_at: Instant, record: &mut Record) {
    let seconds = started_at.elapsed().as_secs_f64();
    record.metrics().backend_connect_seconds.observe(seconds);
    record.entry.connect_seconds = Some(seconds);
}
