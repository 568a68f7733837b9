//! Hands a connection to a back end of its route, unread.

use std::sync::Arc;
use std::time::Instant;

use snisplit_common::alert::Alert;
use snisplit_common::client_hello::ClientHello;
use tokio::net::TcpStream;

use super::admit::{Flow, Present};
use super::aloft::{Life, Places, of, unless_idle};
use super::connect::{Connector, Fitting};
use super::dial::{Dial, Dialled, NoBackend, Preface, Replay};
use super::offer::Offer;
use super::{Scene, close, note, preface};
use crate::config::{Route, Source};
use crate::engine::packet::Front;
use crate::engine::{Course, Listener, Pair, Tier};
use crate::observe::metrics::{Declined, Moved};
use crate::observe::{Metrics, Outcome, Record};

pub(super) async fn forward(
    client: TcpStream,
    (hello, replay): (Box<ClientHello>, Replay),
    route: &Route,
    scene: Scene<'_>,
    (record, present): (&mut Record, Present),
) -> Life {
    // A CA validates a name several times at once; none of these is anybody's flow.
    let flow = match hello.is_acme_validation() {
        true => Ok(None),
        false => scene.begin(record).map(Some),
    };
    let flow = match flow {
        Ok(flow) => flow,
        Err(full) => return close::turn_away(client, full, record).into(),
    };
    let header = preface::header(route, &hello, &client, record);
    let offer = |patience| Offer { client: &client, hello: hello.wire_len, patience };
    let offer = scene.config.limits.answer_timeout.map(offer);
    let preface = Preface { header: &header, replay, offer, is_followed: true };
    let engine = scene.shared.ladder.packet(scene.config.engine);
    let addresses = (record.entry.proxy.unwrap_or(record.entry.client), record.entry.listener);
    let packet = engine
        .and_then(|engine| Some(Fitting { engine, front: Front::of(&client, addresses).ok()? }));
    match Box::pin(dial(route, (preface, packet), scene, record)).await {
        Ok(dialled) => {
            drop((hello, header));
            let counts = (present, flow);
            Box::pin(carry((client, dialled), counts, route, scene, record)).await
        }
        Err(NoBackend) => {
            let alert = Alert::InternalError;
            Box::pin(close::refuse(client, alert, "no_backend", record)).await.into()
        }
    }
}

/// Dials a back end of the route and takes the time.
pub(super) async fn dial(
    route: &Route,
    (preface, packet): (Preface<'_>, Option<Fitting<'_>>),
    scene: Scene<'_>,
    record: &mut Record,
) -> Result<Dialled, NoBackend> {
    let Scene { config, shared, .. } = scene;
    let from = record.entry.client.ip();
    let dial = Dial {
        connector: Connector {
            limits: &config.limits,
            resolver: &shared.resolver,
            from: (route.source == Source::Client).then_some(from),
            packet,
            first: preface.first(),
        },
        door: &shared.door,
        backends: &shared.backends,
        metrics: scene.metrics(),
    };
    let begun = Instant::now();
    let dialled = dial.backend(route, from, preface).await;
    note::dial(begun, record);
    dialled
}

async fn carry(
    (client, dialled): (TcpStream, Dialled),
    (_present, _flow): (Present, Option<Flow>),
    route: &Route,
    scene: Scene<'_>,
    record: &mut Record,
) -> Life {
    let Dialled { socket, terms, place, told, _counted, _own } = dialled;
    let places = Box::new(Places { _present, _flow, _counted, _own });
    record.entry.backend = Some(place);
    scene.tally.tell(told, 0);
    let Ok(pair) = Pair::new(client, (socket, terms), Arc::clone(scene.tally)) else {
        return Outcome::ClientGone.into();
    };
    let carried =
        scene.shared.ladder.carry(scene.config.engine, (pair, &route.label), scene.metrics());
    match unless_idle(Box::pin(carried), scene.config.limits.idle_timeout, scene.tally).await {
        Some(Course::Flying(flight)) => Life::Flying(flight, places),
        Some(Course::Grown(grown)) => Life::Grown(grown, places),
        Some(Course::Ended(end)) => of(Some(end)).into(),
        None => of(None).into(),
    }
}

impl Listener for Metrics {
    fn declined(&self, by: Tier, why: &'static str) {
        let labels = Declined { engine: by.name(), reason: why };
        self.declined.get_or_create(&labels).inc();
    }

    fn moved(&self, to: Tier) {
        self.moved.get_or_create(&Moved { engine: to.name() }).inc();
    }
}
