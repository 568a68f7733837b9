//! Connects a session to a back end of its route.

use std::time::Instant;

use crate::config::{Route, SourceAddress};
use crate::session::context::ConnContext;
use crate::session::record_fields;
use crate::telemetry::Record;
use crate::upstream::connect::{Connector, OffloadableConnect};
use crate::upstream::dialer::{BackendConn, BackendDialer, BackendPreamble, NoBackend};

/// Connects to a back end of the route, and records the time that this takes.
///
/// # Errors
///
/// No back end of the route answered.
pub(super) async fn connect_backend(
    route: &Route,
    preamble: BackendPreamble<'_>,
    offload: Option<OffloadableConnect<'_>>,
    context: ConnContext<'_>,
    record: &mut Record,
) -> Result<BackendConn, NoBackend> {
    let ConnContext { config, shared, .. } = context;
    let client_ip = record.entry.client.ip();
    let dialer = BackendDialer {
        connector: Connector {
            limits: &config.limits,
            resolver: &shared.resolver,
            source_addr: (route.source_address == SourceAddress::Client).then_some(client_ip),
            offload,
            handshake_ack: preamble.handshake_ack(),
        },
        loop_detector: &shared.loop_detector,
        backends: &shared.backends,
        metrics: context.metrics(),
    };
    let started_at = Instant::now();
    let result = dialer.connect_any(route, client_ip, preamble).await;
    record_fields::set_connect_time(started_at, record);
    result
}
