//! Connects to a back end of the route, the next one if one does not answer.
//!
//! Trying again is safe: the hello is still unread in the client's socket.

use std::io;
use std::net::IpAddr;

use snisplit_common::starttls::{SSL_ACCEPTED, SSL_REQUEST};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tracing::debug;

use super::admit::{Door, OwnAddress};
use super::backends::{Backends, Choice, Connected};
use super::connect::{self, Connector, First};
use super::offer::Offer;
use crate::config::{Backend, Place, Route};
use crate::engine::Socket;
use crate::engine::packet::Terms;
use crate::observe::metrics;
use crate::observe::{Metrics, Peer};

/// No back end of the route answered.
pub(super) struct NoBackend;

/// What dialling goes by.
pub(super) struct Dial<'d> {
    pub(super) connector: Connector<'d>,
    pub(super) door: &'d Door,
    pub(super) backends: &'d Backends,
    pub(super) metrics: &'d Metrics,
}

/// What a back end hears before the client's own bytes.
#[derive(Clone, Copy)]
pub(super) struct Preface<'p> {
    pub(super) header: &'p [u8],
    pub(super) replay: Replay,
    /// The hello, where a back end must answer it to be taken.
    pub(super) offer: Option<Offer<'p>>,
    /// Whether the client's own bytes are there already.
    pub(super) is_followed: bool,
}

impl Preface<'_> {
    /// What a back end hears first.
    pub(super) fn first(self) -> First {
        if self.is_followed || self.speaks() { First::Bytes } else { First::Acknowledgement }
    }

    /// Whether there is anything for a back end to hear.
    fn speaks(self) -> bool {
        !self.header.is_empty() || self.replay != Replay::Nothing || self.offer.is_some()
    }
}

/// A connection to a back end, and what must be kept as long as it lasts.
pub(super) struct Dialled {
    pub(super) socket: Socket,
    /// What the packet engine must know of it, if that may have it.
    pub(super) terms: Option<Box<Terms>>,
    /// Its address, for people.
    pub(super) place: Peer,
    /// Bytes of the client that it has already.
    pub(super) told: usize,
    pub(super) _counted: Connected,
    /// A back end on this very host could be ourselves: its connection is known by our address.
    pub(super) _own: Option<OwnAddress>,
}

impl Dial<'_> {
    /// Tries every address of every back end once, in the order that `balance` gives.
    /// `dial_timeout` bounds each back end, name resolution included. The first to take `preface`
    /// is it.
    pub(super) async fn backend(
        &self,
        route: &Route,
        client: IpAddr,
        preface: Preface<'_>,
    ) -> Result<Dialled, NoBackend> {
        let mut choices = self.backends.order(route, client);
        // No back end is to blame for a client that speaks another IP.
        choices.retain(|choice| self.can_reach(choice.backend));
        let last = choices.len().saturating_sub(1);
        for (index, choice) in choices.iter().enumerate() {
            // Behind the last one nothing else is left: it may take its time.
            let offer = preface.offer.filter(|_| index < last);
            let tried = self.try_one(choice, Preface { offer, ..preface }).await;
            if tried.is_err() && offer.is_some_and(Offer::is_gone) {
                return Err(NoBackend);
            }
            self.backends.dialled(choice, tried.is_ok());
            match tried {
                Ok(dialled) => return Ok(dialled),
                Err(error) => {
                    let backend = choice.backend;
                    debug!(route = route.label, %backend, %error, "dial failed");
                    let labels = metrics::Dial { backend: backend.to_string() };
                    self.metrics.dial_failures.get_or_create(&labels).inc();
                }
            }
        }
        Err(NoBackend)
    }

    fn can_reach(&self, backend: &Backend) -> bool {
        match (self.connector.from, &backend.place) {
            (Some(from), Place::Address(to)) => from.is_ipv4() == to.is_ipv4(),
            (Some(_), Place::Name(..) | Place::Unix(_)) | (None, _) => true,
        }
    }

    async fn try_one(&self, choice: &Choice<'_>, preface: Preface<'_>) -> io::Result<Dialled> {
        let greeted = self.greet(choice, preface);
        let mut dialled = timeout(self.connector.limits.dial_timeout, greeted).await??;
        if let Some(offer) = preface.offer {
            offer.show(&mut dialled.socket).await?;
            dialled.told = offer.take()?;
        }
        Ok(dialled)
    }

    async fn greet(&self, choice: &Choice<'_>, preface: Preface<'_>) -> io::Result<Dialled> {
        let connect::Connected { mut socket, terms } =
            self.connector.connect(choice.backend).await?;
        let addresses = match &terms {
            Some(terms) => Some(terms.addresses()),
            None => socket.addresses()?,
        };
        let (place, _own) = match addresses {
            None => (Peer::Unix(choice.backend.to_string()), None),
            Some((own, peer)) => {
                (Peer::Address(peer), (own.ip() == peer.ip()).then(|| self.door.dials_from(own)))
            }
        };
        if preface.speaks() {
            socket = socket.watched()?;
            socket.write_all(preface.header).await?;
            preface.replay.to(&mut socket).await?;
        }
        Ok(Dialled { socket, terms, place, told: 0, _counted: self.backends.connect(choice), _own })
    }
}

/// What a back end must hear before the hello because the client said it to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replay {
    Nothing,
    /// PostgreSQL's request for TLS; the back end must be willing.
    SslRequest,
}

impl Replay {
    async fn to(self, socket: &mut Socket) -> io::Result<()> {
        if self == Self::Nothing {
            return Ok(());
        }
        socket.write_all(&SSL_REQUEST).await?;
        match socket.read_u8().await? {
            SSL_ACCEPTED => Ok(()),
            _ => Err(io::Error::other("the back end speaks no TLS (ssl = off?)")),
        }
    }
}
