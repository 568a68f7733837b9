//! The life of a connection: peek, decide, then terminate, forward or refuse. One record when it
//! ends.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use snisplit_common::alert::Alert;
use snisplit_common::client_hello::ClientHello;
use snisplit_common::decide::{Action, decide};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certs::Keyring;
use crate::config::{Config, Listener, Starttls};
use crate::engine::{Ladder, Tally};
use crate::observe::record::Observers;
use crate::observe::{AcmeLog, Metrics, Outcome, Record};

pub(crate) mod accept;
pub(crate) mod admit;
pub(crate) mod adopt;
mod aloft;
pub(crate) mod backends;
mod close;
pub(crate) mod connect;
pub(crate) mod desks;
mod dial;
mod forward;
pub(crate) mod http;
mod note;
mod offer;
mod peek;
mod preface;
pub(crate) mod proofs;
pub(crate) mod resolve;
mod terminate;

use admit::Door;
use aloft::{Account, Aloft, Life, carry_on, watch};
use backends::Backends;
use dial::Replay;
use peek::{NoHello, Peek};
use proofs::{Held, Proofs};
use resolve::Resolver;
use terminate::Ours;

/// What every connection of the agent shares.
pub(crate) struct Shared {
    /// Swapped at a reload; a connection keeps the one it was accepted under.
    pub(crate) config: ArcSwap<Config>,
    pub(crate) ladder: Ladder,
    pub(crate) door: Door,
    pub(crate) backends: Backends,
    pub(crate) resolver: Resolver,
    pub(crate) keyring: Keyring,
    pub(crate) observers: Arc<Observers>,
    pub(crate) acme_log: AcmeLog,
    /// The runtime of all cores, where what is no longer young is carried, and what is ours decrypted.
    pub(crate) home: Handle,
    /// Ends all connections at once.
    pub(crate) cut: CancellationToken,
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

    /// Counts a flow against its source.
    fn begin(self, record: &Record) -> Result<admit::Flow, admit::Refusal> {
        self.shared.door.begin(record.entry.client.ip(), &self.config.limits)
    }
}

/// Serves one accepted connection to its end. `at` is the address it was accepted on.
pub(crate) async fn serve(
    client: TcpStream,
    from: SocketAddr,
    at: SocketAddr,
    (shared, tasks): (Arc<Shared>, TaskTracker),
) {
    let record = Record::open(Arc::clone(&shared.observers), from, at);
    let mut account = Account { config: shared.config.load_full(), tally: Arc::default(), record };
    let Account { config, tally, record } = &mut account;
    let scene = Scene { config, shared: &shared, tally };
    let life = tokio::select! {
        life = live(client, scene, record) => life,
        () = shared.cut.cancelled() => Life::Over(Outcome::Cut),
    };
    // This task ends, and gives back what it took to begin the flow.
    let home = &shared.home;
    match life {
        Life::Over(outcome) => account.conclude(outcome),
        Life::Flying(flight, places) => {
            let Account { config, tally, record } = account;
            let limit = config.limits.idle_timeout;
            let aloft = Aloft { flight, _places: Some(places), tally, limit, record };
            tasks.spawn(watch(aloft, Arc::clone(&shared)));
        }
        Life::Grown(grown, places) => {
            tasks.spawn_on(carry_on(account, (grown, places), Arc::clone(&shared)), home);
        }
        Life::Ours(ours, present) => {
            tasks.spawn_on(terminate::serve(account, (ours, present), Arc::clone(&shared)), home);
        }
    }
}

/// Each phase has its memory on the heap, and gives it back: a flow that runs holds what it needs.
async fn live(client: TcpStream, scene: Scene<'_>, record: &mut Record) -> Life {
    let Scene { config, shared, .. } = scene;
    let listener = config.listener(record.entry.listener);
    let from = record.entry.client;
    let is_proxy = listener.wants_header(from.ip());
    let (present, waiting) = match shared.door.enter(from, is_proxy, &config.limits) {
        Ok(places) => places,
        Err(full) => return close::turn_away(client, full, record).into(),
    };
    let mut peek = Peek::new(&client, listener.hello_timeout);
    let (hello, replay) = match Box::pin(greet(&mut peek, &listener, config, record)).await {
        Ok(greeting) => greeting,
        Err(why) => return Box::pin(close::without_hello(client, why, record)).await.into(),
    };
    drop((peek, waiting));
    if shared.door.is_own(from) {
        return Box::pin(close::refuse(client, Alert::InternalError, "loop", record)).await.into();
    }
    note::hello(&hello, record);
    let proofs = Proofs { config, keyring: &shared.keyring };
    let verdict = decide(&hello, &config.routes, config.acme_bypass, &proofs);
    note::verdict(&hello, &verdict, &shared.acme_log, record);
    let outcome = match verdict.action {
        Action::Terminate(Held::Challenge(answer)) => {
            Box::pin(terminate::answer(client, answer)).await
        }
        Action::Terminate(Held::Certificate(one, server)) => {
            let patience = listener.hello_timeout;
            return Life::Ours(Box::new(Ours { client, hello, one, server, patience }), present);
        }
        Action::Refuse(alert) => {
            Box::pin(close::refuse(client, alert, verdict.reason.label(), record)).await
        }
        Action::Forward(route) => {
            let greeting = (hello, replay);
            return forward::forward(client, greeting, route, scene, (record, present)).await;
        }
    };
    outcome.into()
}

/// The client's first words: whom it speaks for and that it wants TLS, where these are due, and its
/// hello. The back end must hear the request for TLS too.
async fn greet(
    peek: &mut Peek<'_>,
    listener: &Listener,
    config: &Config,
    record: &mut Record,
) -> Result<(Box<ClientHello>, Replay), NoHello> {
    if listener.wants_header(record.entry.client.ip()) {
        note::header(&peek.header().await?, record);
    }
    let replay = match listener.starttls {
        Some(Starttls::Postgres) if peek.starttls().await? => Replay::SslRequest,
        Some(Starttls::Postgres) | None => Replay::Nothing,
    };
    Ok((peek.hello(config.limits.hello_bytes).await?, replay))
}
