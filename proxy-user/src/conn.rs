//! The life of a connection: peek, decide, then forward or refuse. One record when it ends.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use snisplit_common::alert::Alert;
use snisplit_common::decide::{AcmeBypass, Certificates, Decision, Verdict, decide};
use snisplit_common::hello::{Hello, Sni};
use snisplit_common::name::ServerName;
use snisplit_common::routes::Routes;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, Listener, Route};
use crate::engine::{Ladder, Pair, Progress, Tier};
use crate::observe::metrics::{Acme, Declined};
use crate::observe::record::Observers;
use crate::observe::{AcmeLog, Metrics, Outcome, Record};

pub(crate) mod accept;
mod close;
mod dial;
mod peek;

/// What every connection of the agent shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) routes: Routes<Route>,
    pub(crate) acme_bypass: AcmeBypass,
    pub(crate) limits: Limits,
    pub(crate) ladder: Ladder,
    pub(crate) observers: Observers,
    pub(crate) acme_log: AcmeLog,
    /// Ends all connections at once.
    pub(crate) cut: CancellationToken,
}

/// This agent holds no certificates, so no connection can be terminated: the type says so.
pub(crate) struct NoCertificates;

impl Certificates for NoCertificates {
    type Held = Infallible;

    fn pending(&self, _: &ServerName) -> Option<Infallible> {
        None
    }

    fn managed(&self, _: &ServerName) -> Option<Option<Infallible>> {
        None
    }
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    client: TcpStream,
    from: SocketAddr,
    listener: Arc<Listener>,
    shared: Arc<Shared>,
) {
    let mut record = Record::open(shared.observers.clone(), from, listener.address);
    let progress = Arc::new(Progress::default());
    record.outcome = tokio::select! {
        outcome = live(client, &listener, &shared, &progress, &mut record) => outcome,
        () = shared.cut.cancelled() => Outcome::Cut,
    };
    (record.entry.up, record.entry.down) = progress.read();
    record.entry.engine = progress.tier().map(Tier::name);
}

async fn live(
    client: TcpStream,
    listener: &Listener,
    shared: &Shared,
    progress: &Arc<Progress>,
    record: &mut Record,
) -> Outcome {
    let hello = match peek::hello(&client, shared.limits.hello_bytes, listener.hello_timeout).await
    {
        Ok(hello) => hello,
        Err(why) => return close::without_hello(client, why, record).await,
    };
    note_hello(&hello, record);
    let verdict = decide(&hello, &shared.routes, shared.acme_bypass, &NoCertificates);
    note_verdict(&hello, &verdict, &shared.acme_log, record);
    match verdict.decision {
        Decision::Terminate(never) => match never {},
        Decision::Refuse(alert) => {
            close::refuse(client, alert, verdict.reason.name(), record).await
        }
        Decision::Forward(route) => {
            let begun = Instant::now();
            let dialled = dial::backend(route, shared.limits.dial_timeout, metrics(shared)).await;
            note_dial(begun, record);
            match dialled {
                Ok(backend) => carry(client, backend, shared, progress, record).await,
                Err(dial::NoBackend) => {
                    close::refuse(client, Alert::InternalError, "no_backend", record).await
                }
            }
        }
    }
}

async fn carry(
    client: TcpStream,
    backend: TcpStream,
    shared: &Shared,
    progress: &Arc<Progress>,
    record: &mut Record,
) -> Outcome {
    record.entry.backend = backend.peer_addr().ok();
    let Ok(pair) = Pair::new(client, backend, Arc::clone(progress)) else {
        return Outcome::ClientGone;
    };
    let declined = |tier: Tier, reason| {
        let labels = Declined { engine: tier.name(), reason };
        metrics(shared).declined.get_or_create(&labels).inc();
    };
    let tally = shared.ladder.carry(pair, declined).await;
    Outcome::Carried(tally.end.name())
}

fn metrics(shared: &Shared) -> &Metrics {
    &shared.observers.metrics
}

fn note_hello(hello: &Hello, record: &mut Record) {
    let seconds = record.age().as_secs_f64();
    record.metrics().hello_seconds.observe(seconds);
    record.entry.hello_time = Some(seconds);
    record.entry.hello_bytes = Some(hello.wire_len);
    record.entry.hello_records = Some(hello.records);
    record.entry.alpn =
        hello.alpn.iter().map(|protocol| protocol.escape_ascii().to_string()).collect();
    record.entry.sni = match &hello.sni {
        Sni::Name(name) => Some(name.to_string()),
        Sni::Absent | Sni::Invalid(_) => None,
    };
}

fn note_verdict(
    hello: &Hello,
    verdict: &Verdict<'_, Route, Infallible>,
    acme_log: &AcmeLog,
    record: &mut Record,
) {
    let reason = verdict.reason.name();
    record.entry.reason = Some(reason);
    let decision = match &verdict.decision {
        Decision::Terminate(never) => match *never {},
        Decision::Forward(route) => {
            record.entry.route = Some(route.label.clone());
            "forward"
        }
        Decision::Refuse(_) => "refuse",
    };
    if hello.is_acme_validation() {
        let class = verdict.class.name();
        record.acme = Some(Acme { class, decision, reason });
        acme_log.tell(record);
    }
}

fn note_dial(begun: Instant, record: &mut Record) {
    let seconds = begun.elapsed().as_secs_f64();
    record.metrics().dial_seconds.observe(seconds);
    record.entry.dial_time = Some(seconds);
}
