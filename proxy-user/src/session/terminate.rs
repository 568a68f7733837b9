//! Termination of TLS: answers to TLS-ALPN-01 validations, and plaintext between a client and a back end.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::downstream::admission::ConnectionPermit;
use crate::downstream::reject;
use crate::engine::{
    FlowEnd, LocalErrorStage, Socket, is_local_error, rebind_to_runtime, set_graceful_close,
};
use crate::session::connect_backend::connect_backend;
use crate::session::context::{ConnContext, Session, Shared};
use crate::session::idle_timeout::{outcome_from_end, with_idle_timeout};
use crate::session::next_step::PendingTermination;
use crate::telemetry::{Outcome, Record, RejectReason};
use crate::upstream::dialer::{BackendConn, BackendPreamble, StarttlsReplay};
use crate::upstream::proxy_header;

/// Maximum time of a validation. A CA needs one round trip. Traefik had no such limit
/// (CVE-2026-22045).
const ACME_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of the buffer of a direction: the maximum plaintext of a TLS record (RFC 8446 §5.1).
const BUFFER_LEN: usize = 16 * 1024;

/// The value of the label `engine` for a terminated connection.
const ENGINE_LABEL: &str = "terminate";

/// Answers a TLS-ALPN-01 validation and closes, without application data (RFC 8737 §3).
pub(crate) async fn answer_tls_alpn(client: TcpStream, config: Arc<ServerConfig>) -> Outcome {
    let handshake = timeout(ACME_HANDSHAKE_TIMEOUT, async {
        let mut tls = TlsAcceptor::from(config).accept(client).await?;
        set_graceful_close(tls.get_ref().0);
        tls.shutdown().await?;
        // With unread bytes in the socket, close(2) would send a reset that overtakes what was sent.
        let mut discard_buf = [0; 64];
        while tls.get_mut().0.read(&mut discard_buf).await? > 0 {}
        io::Result::Ok(())
    });
    match handshake.await {
        // The CA has the certificate once the handshake is complete, and may reset then.
        Ok(Ok(())) => Outcome::ChallengeAnswered,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => Outcome::ChallengeAnswered,
        Ok(Err(_)) | Err(_) => Outcome::HandshakeFailed,
    }
}

/// Terminates a connection until it ends, and completes its record.
#[expect(clippy::manual_async_fn, reason = "an async fn would store its arguments twice")]
pub(crate) fn run_termination(
    mut session: Session,
    termination: Box<PendingTermination>,
    connection_permit: ConnectionPermit,
    shared: Arc<Shared>,
) -> impl Future<Output = ()> {
    async move {
        // Dropped before the record.
        let _connection_permit = connection_permit;
        let Session { config, counters, record } = &mut session;
        let context = ConnContext { config, shared: &shared, counters };
        let outcome = tokio::select! {
            outcome = Box::pin(terminate(*termination, context, record)) => outcome,
            () = shared.abort.cancelled() => Outcome::Shutdown,
        };
        session.conclude(outcome);
    }
}

/// Terminates TLS and proxies the plaintext to a back end.
///
/// Connects to the back end once the handshake is complete, so that a client that never completes one
/// costs no back end a connection.
async fn terminate(
    termination: PendingTermination,
    context: ConnContext<'_>,
    record: &mut Record,
) -> Outcome {
    let PendingTermination { client, hello, terminate, tls_config, handshake_timeout } =
        termination;
    let client = match rebind_to_runtime(client) {
        Ok(client) => client,
        Err(error) => {
            let end = FlowEnd::local_error(LocalErrorStage::Register, &error);
            return Outcome::FlowEnded(end);
        }
    };
    let _flow_permit = match context.admit_flow(record) {
        Ok(permit) => permit,
        Err(reason) => return reject::reject_immediately(client, reason, record),
    };
    record.entry.engine = Some(ENGINE_LABEL);
    let proxy_header = proxy_header::encode_header(&terminate.route, &hello, &client, record);
    drop(hello);
    let Some(tls) = accept_tls(client, tls_config, handshake_timeout).await else {
        return Outcome::HandshakeFailed;
    };
    // In some protocols the back end sends first, so bytes of the client need not follow.
    let preamble = BackendPreamble {
        proxy_header: &proxy_header,
        replay: StarttlsReplay::None,
        probe: None,
        client_bytes_follow: false,
    };
    let Ok(backend_conn) = connect_backend(&terminate.route, preamble, None, context, record).await
    else {
        record.entry.reason = Some(RejectReason::NoBackend.label());
        return Outcome::Rejected(RejectReason::NoBackend);
    };
    let BackendConn { socket, label, guards: _guards, .. } = backend_conn;
    record.entry.backend = Some(label);
    if let Err(error) = socket.set_nodelay_and_reset_on_close() {
        let end = FlowEnd::local_error(LocalErrorStage::SocketOption, &error);
        return Outcome::FlowEnded(end);
    }
    let add_bytes = |up, down| context.counters.add_bytes(up, down);
    let relay = Box::pin(proxy_plaintext(tls, socket, add_bytes));
    outcome_from_end(
        with_idle_timeout(relay, context.config.limits.idle_timeout, context.counters).await,
    )
}

/// Runs the TLS handshake. If it fails, rustls has sent an alert; `None` also stands for a timeout.
async fn accept_tls(
    client: TcpStream,
    config: Arc<ServerConfig>,
    handshake_timeout: Duration,
) -> Option<TlsStream<TcpStream>> {
    let accepted = TlsAcceptor::from(config).accept(client).into_fallible();
    match timeout(handshake_timeout, accepted).await {
        Ok(Ok(tls)) => Some(tls),
        Ok(Err((_, client))) => {
            // A reset would overtake the alert.
            set_graceful_close(&client);
            None
        }
        Err(_elapsed) => None,
    }
}

/// Proxies both directions until they end. Calls `add_bytes` with the bytes up and down that it delivered.
///
/// A `close_notify` ends a direction as a FIN does. A client's connection that ends without one was
/// truncated, and the agent resets the back end's (RFC 8446 §6.1).
async fn proxy_plaintext(
    tls: TlsStream<TcpStream>,
    backend: Socket,
    add_bytes: impl Fn(usize, usize),
) -> FlowEnd {
    let (from_client, to_client) = split(tls);
    let (from_backend, to_backend) = split(backend);
    let up = copy_direction(from_client, to_backend, |bytes| add_bytes(bytes, 0));
    let down = copy_direction(from_backend, to_client, |bytes| add_bytes(0, bytes));
    let from_up = async {
        up.await.map_err(|error| error.into_flow_end(FlowEnd::ClientReset, FlowEnd::BackendReset))
    };
    let from_down = async {
        down.await.map_err(|error| error.into_flow_end(FlowEnd::BackendReset, FlowEnd::ClientReset))
    };
    match tokio::try_join!(from_up, from_down) {
        Ok(((from_client, to_backend), (from_backend, to_client))) => {
            set_graceful_close(from_client.unsplit(to_client).get_ref().0);
            set_graceful_close(&from_backend.unsplit(to_backend));
            FlowEnd::Closed
        }
        Err(end) => end,
    }
}

/// Why a direction ended early.
enum CopyError {
    /// The connection that the direction reads from failed.
    Read,
    /// The connection that the direction writes to failed.
    Write,
    /// This host could not carry the direction on.
    Local(LocalErrorStage),
}

impl CopyError {
    /// The end of the flow: `read` or `write`, for a connection that failed.
    fn into_flow_end(self, read: FlowEnd, write: FlowEnd) -> FlowEnd {
        match self {
            Self::Read => read,
            Self::Write => write,
            Self::Local(stage) => FlowEnd::LocalError(stage),
        }
    }

    fn from_read(error: &io::Error) -> Self {
        if is_local_error(error) { Self::Local(LocalErrorStage::Read) } else { Self::Read }
    }

    fn from_write(error: &io::Error) -> Self {
        if is_local_error(error) { Self::Local(LocalErrorStage::Write) } else { Self::Write }
    }
}

/// Copies one direction until its end of stream. Returns the halves, so that the caller can close them.
async fn copy_direction<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut from: R,
    mut to: W,
    add_bytes: impl Fn(usize),
) -> Result<(R, W), CopyError> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let bytes = from.read(&mut buffer).await.map_err(|error| CopyError::from_read(&error))?;
        if bytes == 0 {
            to.shutdown().await.map_err(|error| CopyError::from_write(&error))?;
            return Ok((from, to));
        }
        to.write_all(&buffer[..bytes]).await.map_err(|error| CopyError::from_write(&error))?;
        to.flush().await.map_err(|error| CopyError::from_write(&error))?;
        add_bytes(bytes);
    }
}
