//! The life of a connection: peek, decide, then forward or refuse. One record when it ends.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use snisplit_common::alert::Alert;
use snisplit_common::decide::{Certificates, Decision, decide};
use snisplit_common::hello::Hello;
use snisplit_common::name::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Listener, Route, Source, Starttls};
use crate::engine::{Ladder, Pair, Tally, Tier};
use crate::observe::metrics::Declined;
use crate::observe::record::Observers;
use crate::observe::{AcmeLog, Metrics, Outcome, Record};

pub(crate) mod accept;
pub(crate) mod admit;
pub(crate) mod backends;
mod close;
pub(crate) mod connect;
mod dial;
mod note;
mod offer;
mod peek;
mod preface;
pub(crate) mod resolve;

use admit::Door;
use backends::Backends;
use connect::Connector;
use dial::{Dial, Dialled, Preface, Replay};
use offer::Offer;
use peek::{NoHello, Peek};
use resolve::Resolver;

/// What every connection of the agent shares.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Swapped at a reload; a connection keeps the one it was accepted under.
    pub(crate) config: ArcSwap<Config>,
    pub(crate) ladder: Ladder,
    pub(crate) door: Door,
    pub(crate) backends: Backends,
    pub(crate) resolver: Resolver,
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

/// What surrounds one connection.
#[derive(Clone, Copy)]
struct Scene<'s> {
    config: &'s Config,
    shared: &'s Shared,
    tally: &'s Arc<Tally>,
}

impl<'s> Scene<'s> {
    fn metrics(self) -> &'s Metrics {
        &self.shared.observers.metrics
    }
}

/// Serves one accepted connection to its end. `at` is the address it was accepted on.
pub(crate) async fn serve(
    client: TcpStream,
    from: SocketAddr,
    at: SocketAddr,
    shared: Arc<Shared>,
) {
    let mut record = Record::open(shared.observers.clone(), from, at);
    let tally = Arc::new(Tally::default());
    let config = shared.config.load_full();
    let scene = Scene { config: &config, shared: &shared, tally: &tally };
    record.outcome = tokio::select! {
        outcome = live(client, scene, &mut record) => outcome,
        () = shared.cut.cancelled() => Outcome::Cut,
    };
    (record.entry.up, record.entry.down) = tally.read();
    record.entry.engine = tally.tier().map(Tier::name);
}

async fn live(client: TcpStream, scene: Scene<'_>, record: &mut Record) -> Outcome {
    let Scene { config, shared, .. } = scene;
    let listener = config.listener(record.entry.listener);
    let from = record.entry.client;
    let is_proxy = listener.wants_header(from.ip());
    let (_present, waiting) = match shared.door.enter(from, is_proxy, &config.limits) {
        Ok(places) => places,
        Err(full) => return close::turn_away(client, full, record),
    };
    let mut peek = Peek::new(&client, listener.hello_timeout);
    let (hello, replay) = match greet(&mut peek, &listener, config, record).await {
        Ok(greeting) => greeting,
        Err(why) => return close::without_hello(client, why, record).await,
    };
    drop((peek, waiting));
    if shared.door.is_own(from) {
        return close::refuse(client, Alert::InternalError, "loop", record).await;
    }
    note::hello(&hello, record);
    let verdict = decide(&hello, &config.routes, config.acme_bypass, &NoCertificates);
    note::verdict(&hello, &verdict, &shared.acme_log, record);
    match verdict.decision {
        Decision::Terminate(never) => match never {},
        Decision::Refuse(alert) => {
            close::refuse(client, alert, verdict.reason.name(), record).await
        }
        Decision::Forward(route) => forward(client, (&hello, replay), route, scene, record).await,
    }
}

/// The client's first words: whom it speaks for and that it wants TLS, where these are due, and its
/// hello. The back end must hear the request for TLS too.
async fn greet(
    peek: &mut Peek<'_>,
    listener: &Listener,
    config: &Config,
    record: &mut Record,
) -> Result<(Box<Hello>, Replay), NoHello> {
    if listener.wants_header(record.entry.client.ip()) {
        note::header(&peek.header().await?, record);
    }
    let replay = match listener.starttls {
        Some(Starttls::Postgres) if peek.starttls().await? => Replay::SslRequest,
        Some(Starttls::Postgres) | None => Replay::Nothing,
    };
    Ok((peek.hello(config.limits.hello_bytes).await?, replay))
}

async fn forward(
    client: TcpStream,
    (hello, replay): (&Hello, Replay),
    route: &Route,
    scene: Scene<'_>,
    record: &mut Record,
) -> Outcome {
    let Scene { config, shared, .. } = scene;
    // A CA validates a name several times at once; none of these is anybody's flow.
    let flow = match hello.is_acme_validation() {
        true => Ok(None),
        false => shared.door.begin(record.entry.client.ip(), &config.limits).map(Some),
    };
    let _flow = match flow {
        Ok(flow) => flow,
        Err(full) => return close::turn_away(client, full, record),
    };
    let from = record.entry.client.ip();
    let dial = Dial {
        connector: Connector {
            limits: &config.limits,
            resolver: &shared.resolver,
            from: (route.source == Source::Client).then_some(from),
        },
        door: &shared.door,
        backends: &shared.backends,
        metrics: scene.metrics(),
    };
    let header = preface::header(route, hello, &client, record);
    let offer = |patience| Offer { client: &client, hello: hello.wire_len, patience };
    let offer = config.limits.answer_timeout.map(offer);
    let dialling = dial.backend(route, from, Preface { header: &header, replay, offer });
    match note::dial(dialling, record).await {
        Ok(dialled) => carry(client, dialled, scene, record).await,
        Err(dial::NoBackend) => {
            close::refuse(client, Alert::InternalError, "no_backend", record).await
        }
    }
}

async fn carry(
    client: TcpStream,
    dialled: Dialled,
    scene: Scene<'_>,
    record: &mut Record,
) -> Outcome {
    let Dialled { socket, place, told, _counted, _own } = dialled;
    record.entry.backend = Some(place);
    scene.tally.tell_up(told);
    let Ok(pair) = Pair::new(client, socket, Arc::clone(scene.tally)) else {
        return Outcome::ClientGone;
    };
    let declined = |tier: Tier, reason| {
        let labels = Declined { engine: tier.name(), reason };
        scene.metrics().declined.get_or_create(&labels).inc();
    };
    let carried = scene.shared.ladder.carry(scene.config.engine, pair, declined);
    match scene.config.limits.idle_timeout {
        None => Outcome::Carried(carried.await.name()),
        Some(limit) => tokio::select! {
            end = carried => Outcome::Carried(end.name()),
            () = idle(scene.tally, limit) => Outcome::Idle,
        },
    }
}

/// Waits until no byte has moved for `limit`, give or take a quarter of it.
async fn idle(tally: &Tally, limit: Duration) {
    let mut last = (tally.read(), Instant::now());
    while last.1.elapsed() < limit {
        sleep(limit / 4).await;
        if tally.read() != last.0 {
            last = (tally.read(), Instant::now());
        }
    }
}
