//! A connection from accept to its record: read the hello, decide, then forward, terminate or reject.

use std::net::SocketAddr;
use std::sync::Arc;

use snisplit_common::alert::Alert;
use snisplit_common::decide::{Action, decide};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::config::{Config, Listener, Starttls};
use crate::downstream::accept::Acceptor;
use crate::downstream::preamble::{PreambleError, PreambleReader};
use crate::downstream::reject;
use crate::session::certificate_view::{CertificateView, TlsMaterial};
use crate::session::context::{ClientPreamble, ConnContext, Session};
use crate::session::next_step::{NextStep, PendingTermination};
use crate::session::offloaded::{OffloadedConn, run_handover, run_offloaded};
use crate::telemetry::{Outcome, Record, RejectReason};
use crate::upstream::dialer::StarttlsReplay;

pub(crate) use crate::session::context::Shared;

pub(crate) mod acme_http;
pub(crate) mod adopt;
mod certificate_view;
mod connect_backend;
mod context;
mod forward;
mod idle_timeout;
mod next_step;
mod offloaded;
mod record_fields;
mod terminate;

/// Accepts connections on a listener until the future is dropped. Serves each one in a task of its own.
pub(crate) async fn serve_listener(
    listener: TcpListener,
    listen_addr: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
) {
    let mut acceptor = Acceptor::new(listener, &shared.telemetry.metrics);
    loop {
        let (client, from) = acceptor.accept().await;
        let client_addr = SocketAddr::new(from.ip().to_canonical(), from.port());
        tasks.spawn(serve(client, client_addr, listen_addr, Arc::clone(&shared), tasks.clone()));
    }
}

/// Serves one accepted connection until it ends, or until another task continues it.
///
/// The task ends at a [`NextStep`], and frees the memory that accept, hello and connect needed.
async fn serve(
    client: TcpStream,
    client_addr: SocketAddr,
    listen_addr: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
) {
    let record = Record::open(Arc::clone(&shared.telemetry), client_addr, listen_addr);
    let mut session =
        Session { config: shared.config.load_full(), counters: Arc::default(), record };
    let Session { config, counters, record } = &mut session;
    let context = ConnContext { config, shared: &shared, counters };
    let next_step = tokio::select! {
        next_step = handle(client, context, record) => next_step,
        () = shared.abort.cancelled() => NextStep::Done(Outcome::Shutdown),
    };
    let main_runtime = &shared.main_runtime;
    match next_step {
        NextStep::Done(outcome) => session.conclude(outcome),
        NextStep::Offloaded(flow, permits) => {
            let Session { config, counters, record } = session;
            let idle_timeout = config.limits.idle_timeout;
            let offloaded =
                OffloadedConn { flow, _permits: Some(permits), counters, idle_timeout, record };
            tasks.spawn(run_offloaded(offloaded, Arc::clone(&shared)));
        }
        NextStep::Handover(handover, permits) => {
            let handover = run_handover(session, handover, permits, Arc::clone(&shared));
            tasks.spawn_on(handover, main_runtime);
        }
        NextStep::Terminate(termination, connection_permit) => {
            let termination = terminate::run_termination(
                session,
                termination,
                connection_permit,
                Arc::clone(&shared),
            );
            tasks.spawn_on(termination, main_runtime);
        }
    }
}

/// Admits a connection, reads its hello, decides, and does what the decision says.
///
/// The future of each phase is on the heap, so that a running flow does not hold the memory of the phases
/// before.
async fn handle(client: TcpStream, context: ConnContext<'_>, record: &mut Record) -> NextStep {
    let ConnContext { config, shared, .. } = context;
    let listener = config.listener_or_default(record.entry.listener);
    let client_addr = record.entry.client;
    let is_trusted_proxy = listener.requires_proxy_header(client_addr.ip());
    let (connection_permit, handshake_permit) =
        match shared.limiter.acquire(client_addr, is_trusted_proxy, &config.limits) {
            Ok(permits) => permits,
            Err(reason) => return reject::reject_immediately(client, reason, record).into(),
        };
    let mut reader = PreambleReader::new(&client, listener.client_hello_timeout);
    let preamble =
        match Box::pin(read_client_preamble(&mut reader, &listener, config, record)).await {
            Ok(preamble) => preamble,
            Err(error) => {
                return Box::pin(reject::close_without_hello(client, error, record)).await.into();
            }
        };
    drop((reader, handshake_permit));
    if shared.loop_detector.is_loop(client_addr, || client.local_addr()) {
        return Box::pin(reject::reject_with_alert(
            client,
            Alert::InternalError,
            RejectReason::Loop,
            record,
        ))
        .await
        .into();
    }
    let hello = &preamble.hello;
    record_fields::set_client_hello(hello, record);
    let certificates = CertificateView { config, cert_store: &shared.cert_store };
    let decision = decide(hello, &config.routes, config.acme_bypass, &certificates);
    record_fields::set_decision(hello, &decision, &shared.acme_log, record);
    let outcome = match decision.action {
        Action::Terminate(TlsMaterial::Challenge(tls_config)) => {
            Box::pin(terminate::answer_tls_alpn(client, tls_config)).await
        }
        Action::Terminate(TlsMaterial::Certificate(terminate, tls_config)) => {
            let handshake_timeout = listener.client_hello_timeout;
            return NextStep::Terminate(
                Box::new(PendingTermination {
                    client,
                    hello: preamble.hello,
                    terminate,
                    tls_config,
                    handshake_timeout,
                }),
                connection_permit,
            );
        }
        Action::Reject(alert) => {
            let reason = RejectReason::Decision(decision.reason);
            Box::pin(reject::reject_with_alert(client, alert, reason, record)).await
        }
        Action::Forward(route) => {
            return forward::forward(client, preamble, route, context, record, connection_permit)
                .await;
        }
    };
    outcome.into()
}

/// Reads what the listener expects of a client: a PROXY header, a STARTTLS request, and the hello.
async fn read_client_preamble(
    reader: &mut PreambleReader<'_>,
    listener: &Listener,
    config: &Config,
    record: &mut Record,
) -> Result<ClientPreamble, PreambleError> {
    if listener.requires_proxy_header(record.entry.client.ip()) {
        record_fields::set_proxy_header(&reader.read_proxy_header().await?, record);
    }
    let replay = match listener.starttls {
        Some(Starttls::Postgres) if reader.answer_starttls().await? => StarttlsReplay::SslRequest,
        Some(Starttls::Postgres) | None => StarttlsReplay::None,
    };
    let hello = reader.read_client_hello(config.limits.max_client_hello_bytes).await?;
    Ok(ClientPreamble { hello, replay })
}
