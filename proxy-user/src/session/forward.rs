//! Forwarding: connects to a back end of the route, and gives both sockets to an engine. The hello stays
//! unread in the client's socket.

use std::sync::Arc;

use snisplit_common::alert::Alert;
use tokio::net::TcpStream;

use crate::config::Route;
use crate::downstream::admission::{ClientPermits, ConnectionPermit};
use crate::downstream::reject;
use crate::engine::packet::ClientEndpoint;
use crate::engine::{
    CarryResult, DeclineReason, EngineKind, EngineObserver, FlowEnd, FlowRequest, LocalErrorStage,
    SocketPair,
};
use crate::session::connect_backend::connect_backend;
use crate::session::context::{ClientPreamble, ConnContext};
use crate::session::idle_timeout::{IdleTimeout, with_idle_timeout};
use crate::session::next_step::{NextStep, Permits};
use crate::telemetry::metrics::{DeclinedLabels, HandoverLabels};
use crate::telemetry::{Metrics, Outcome, Record, RejectReason};
use crate::upstream::connect::OffloadableConnect;
use crate::upstream::dialer::{BackendConn, BackendPreamble, NoBackend};
use crate::upstream::first_byte::HelloProbe;
use crate::upstream::proxy_header;

/// Forwards a connection to a back end of `route`.
pub(super) async fn forward(
    client: TcpStream,
    ClientPreamble { hello, replay }: ClientPreamble,
    route: &Route,
    context: ConnContext<'_>,
    record: &mut Record,
    connection_permit: ConnectionPermit,
) -> NextStep {
    // A CA validates a name from several addresses at once. Validations do not count as flows.
    let admitted = match hello.is_acme_validation() {
        true => Ok(None),
        false => context.admit_flow(record).map(Some),
    };
    let flow_permit = match admitted {
        Ok(permit) => permit,
        Err(reason) => return reject::reject_immediately(client, reason, record).into(),
    };
    let proxy_header = proxy_header::encode_header(route, &hello, &client, record);
    let new_probe = |timeout| HelloProbe { client: &client, hello_len: hello.wire_len, timeout };
    let probe = context.config.limits.first_byte_timeout.map(new_probe);
    let preamble =
        BackendPreamble { proxy_header: &proxy_header, replay, probe, client_bytes_follow: true };
    let engine = context.shared.engine_selector.packet_engine(context.config.engine);
    let (peer, listener) =
        (record.entry.proxy.unwrap_or(record.entry.client), record.entry.listener);
    let offload = engine.and_then(|engine| {
        Some(OffloadableConnect {
            engine,
            client_endpoint: ClientEndpoint::new(&client, peer, listener).ok()?,
        })
    });
    match Box::pin(connect_backend(route, preamble, offload, context, record)).await {
        Ok(backend_conn) => {
            drop((hello, proxy_header));
            let permits = ClientPermits { _connection: connection_permit, _flow: flow_permit };
            Box::pin(run_engine(client, backend_conn, permits, route, context, record)).await
        }
        Err(NoBackend) => {
            let (alert, reason) = (Alert::InternalError, RejectReason::NoBackend);
            Box::pin(reject::reject_with_alert(client, alert, reason, record)).await.into()
        }
    }
}

/// Gives the socket pair to an engine, until the flow ends or another task continues it.
async fn run_engine(
    client: TcpStream,
    backend_conn: BackendConn,
    client_permits: ClientPermits,
    route: &Route,
    context: ConnContext<'_>,
    record: &mut Record,
) -> NextStep {
    let BackendConn { socket, takeover, label, bytes_sent, guards } = backend_conn;
    let permits = Box::new(Permits { _client: client_permits, _backend: guards });
    record.entry.backend = Some(label);
    context.counters.add_bytes(bytes_sent, 0);
    let counters = Arc::clone(context.counters);
    let pair = match &takeover {
        Some(_) => SocketPair::for_takeover(client, socket, counters),
        None => SocketPair::new(client, socket, counters),
    };
    let pair = match pair {
        Ok(pair) => pair,
        Err(error) => {
            let end = FlowEnd::local_error(LocalErrorStage::SocketOption, &error);
            return Outcome::FlowEnded(end).into();
        }
    };
    let request =
        FlowRequest { choice: context.config.engine, route: &route.label, pair, takeover };
    let relay = context.shared.engine_selector.carry(request, context.metrics());
    match with_idle_timeout(Box::pin(relay), context.config.limits.idle_timeout, context.counters)
        .await
    {
        Ok(CarryResult::Offloaded(flow)) => NextStep::Offloaded(flow, permits),
        Ok(CarryResult::Handover(handover)) => NextStep::Handover(handover, permits),
        Ok(CarryResult::Finished(end)) => Outcome::FlowEnded(end).into(),
        Err(IdleTimeout) => Outcome::IdleTimeout.into(),
    }
}

impl EngineObserver for Metrics {
    fn on_declined(&self, engine: EngineKind, reason: DeclineReason) {
        let labels = DeclinedLabels { engine: engine.name(), reason: reason.label() };
        self.engine_declined.get_or_create(&labels).inc();
    }

    fn on_changed(&self, engine: EngineKind) {
        self.engine_handovers.get_or_create(&HandoverLabels { engine: engine.name() }).inc();
    }
}
