//! Speaks TLS itself: answers a CA's validation, or carries a name's plaintext to its back end.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use snisplit_common::client_hello::ClientHello;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admit::Present;
use super::aloft::{Account, of, unless_idle};
use super::dial::{Dialled, Preface, Replay};
use super::{Scene, Shared, close, forward, preface};
use crate::config::Terminate;
use crate::engine::{End, Socket, here, without_reset};
use crate::observe::{Outcome, Record};

/// How long a validation may take; there is one round trip to wait for, and what stays longer is no
/// CA (CVE-2026-22045 was the lack of this in Traefik).
const VALIDATION: Duration = Duration::from_secs(2);

/// Bytes at once; a TLS record holds as many.
const BUFFER: usize = 16 * 1024;

/// Answers a TLS-ALPN-01 validation and closes: no byte of application data is taken or sent
/// (RFC 8737 §3).
pub(super) async fn answer(client: TcpStream, config: Arc<ServerConfig>) -> Outcome {
    let answered = timeout(VALIDATION, async {
        let mut tls = TlsAcceptor::from(config).accept(client).await?;
        without_reset(tls.get_ref().0);
        tls.shutdown().await?;
        // Unread bytes would make the close a reset that overtakes what was sent.
        let mut scrap = [0; 64];
        while tls.get_mut().0.read(&mut scrap).await? > 0 {}
        io::Result::Ok(())
    });
    match answered.await {
        // The handshake had its answer, and a CA may leave as it likes.
        Ok(Ok(())) => Outcome::Answered,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => Outcome::Answered,
        Ok(Err(_)) | Err(_) => Outcome::HandshakeFailed,
    }
}

/// Ordinary traffic to a name of our own: an unread hello, and what answers it.
pub(super) struct Ours {
    pub(super) client: TcpStream,
    pub(super) hello: Box<ClientHello>,
    pub(super) one: Arc<Terminate>,
    pub(super) server: Arc<ServerConfig>,
    /// `hello_timeout`
    pub(super) patience: Duration,
}

/// Terminates it to its end, and tells of it.
#[expect(clippy::manual_async_fn, reason = "that would hold what it takes twice")]
pub(super) fn serve(
    mut account: Account,
    (ours, present): (Box<Ours>, Present),
    shared: Arc<Shared>,
) -> impl Future<Output = ()> {
    async move {
        // Given back before it is told of.
        let _present = present;
        let Account { config, tally, record } = &mut account;
        let scene = Scene { config, shared: &shared, tally };
        let outcome = tokio::select! {
            outcome = Box::pin(decrypt(*ours, scene, record)) => outcome,
            () = shared.cut.cancelled() => Outcome::Cut,
        };
        account.conclude(outcome);
    }
}

/// Terminates ordinary traffic to a name of our own. The back end is dialled once the handshake is
/// done: it has no time for those who never finish one.
async fn decrypt(ours: Ours, scene: Scene<'_>, record: &mut Record) -> Outcome {
    let Ours { client, hello, one, server, patience } = ours;
    let Ok(client) = here(client) else { return Outcome::ClientGone };
    let _flow = match scene.begin(record) {
        Ok(flow) => flow,
        Err(full) => return close::turn_away(client, full, record),
    };
    record.entry.engine = Some("terminate");
    let header = preface::header(&one.route, &hello, &client, record);
    drop(hello);
    let Some(tls) = accept(client, server, patience).await else {
        return Outcome::HandshakeFailed;
    };
    // What the client says may wait for what the back end says.
    let preface =
        Preface { header: &header, replay: Replay::Nothing, offer: None, is_followed: false };
    let Ok(dialled) = forward::dial(&one.route, (preface, None), scene, record).await else {
        record.entry.reason = Some("no_backend");
        return Outcome::Refused("no_backend");
    };
    let Dialled { socket, place, _counted, _own, .. } = dialled;
    record.entry.backend = Some(place);
    if socket.arm().is_err() {
        return Outcome::ClientGone;
    }
    let told = |up, down| scene.tally.tell(up, down);
    let carried = Box::pin(carry(tls, socket, told));
    of(unless_idle(carried, scene.config.limits.idle_timeout, scene.tally).await)
}

/// The handshake of ordinary traffic; rustls tells the client what is wrong with it.
async fn accept(
    client: TcpStream,
    config: Arc<ServerConfig>,
    patience: Duration,
) -> Option<TlsStream<TcpStream>> {
    let accepted = TlsAcceptor::from(config).accept(client).into_fallible();
    match timeout(patience, accepted).await {
        Ok(Ok(tls)) => Some(tls),
        Ok(Err((_, client))) => {
            // The alert is on its way: a reset would overtake it.
            without_reset(&client);
            None
        }
        Err(_late) => None,
    }
}

/// Carries both directions to their end. `told` hears of bytes up and down as they are delivered.
///
/// A `close_notify` ends a direction as a FIN does; a connection that ends without one was cut, and
/// so is the other side (RFC 8446 §6.1).
async fn carry(tls: TlsStream<TcpStream>, backend: Socket, told: impl Fn(usize, usize)) -> End {
    let (from_client, to_client) = split(tls);
    let (from_backend, to_backend) = split(backend);
    let up = pump(from_client, to_backend, |bytes| told(bytes, 0));
    let down = pump(from_backend, to_client, |bytes| told(0, bytes));
    let from_up =
        async { up.await.map_err(|broken| broken.end(End::ClientReset, End::BackendReset)) };
    let from_down =
        async { down.await.map_err(|broken| broken.end(End::BackendReset, End::ClientReset)) };
    match tokio::try_join!(from_up, from_down) {
        Ok(((from_client, to_backend), (from_backend, to_client))) => {
            without_reset(from_client.unsplit(to_client).get_ref().0);
            without_reset(&from_backend.unsplit(to_backend));
            End::Closed
        }
        Err(end) => end,
    }
}

/// Which half of a direction broke.
enum Broken {
    Read,
    Write,
}

impl Broken {
    fn end(self, read: End, write: End) -> End {
        match self {
            Self::Read => read,
            Self::Write => write,
        }
    }
}

async fn pump<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut from: R,
    mut to: W,
    told: impl Fn(usize),
) -> Result<(R, W), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let bytes = from.read(&mut buffer).await.map_err(|_| Broken::Read)?;
        if bytes == 0 {
            to.shutdown().await.map_err(|_| Broken::Write)?;
            return Ok((from, to));
        }
        to.write_all(&buffer[..bytes]).await.map_err(|_| Broken::Write)?;
        to.flush().await.map_err(|_| Broken::Write)?;
        told(bytes);
    }
}
