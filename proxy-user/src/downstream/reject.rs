//! Rejection of connections: a TLS alert, and a close that lets it arrive.

use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use snisplit_common::alert::Alert;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::downstream::preamble::PreambleError;
use crate::engine::set_graceful_close;
use crate::telemetry::{Outcome, Record, RejectReason};

/// Maximum time that the agent waits for a rejected client to close its side.
const LINGERING_TIMEOUT: Duration = Duration::from_secs(1);

/// Closes a connection without an acceptable hello: with an alert, unless the client has closed it.
pub(crate) async fn close_without_hello(
    client: TcpStream,
    error: PreambleError,
    record: &mut Record,
) -> Outcome {
    let (alert, reason) = match error {
        PreambleError::InvalidClientHello(error) => {
            (error.alert(), RejectReason::InvalidClientHello(error))
        }
        PreambleError::InvalidProxyHeader(error) => {
            (Alert::UnexpectedMessage, RejectReason::InvalidProxyHeader(error))
        }
        PreambleError::ProxyHeaderNotAllowed => {
            (Alert::UnexpectedMessage, RejectReason::ProxyHeaderNotAllowed)
        }
        PreambleError::Timeout { received_any: true } => {
            (Alert::HandshakeFailure, RejectReason::ClientHelloTimeout)
        }
        PreambleError::Timeout { received_any: false } => {
            (Alert::HandshakeFailure, RejectReason::NoData)
        }
        PreambleError::Truncated => (Alert::DecodeError, RejectReason::TruncatedClientHello),
        PreambleError::ClientClosed => {
            set_graceful_close(&client);
            return Outcome::ClientClosed;
        }
    };
    reject_with_alert(client, alert, reason, record).await
}

/// Rejects a connection without waiting for the client: sends an alert and closes.
///
/// Above a limit there may be many such connections. The alert may not arrive: if unread bytes of the
/// client are in the socket, close(2) sends a reset, which can overtake the alert.
pub(crate) fn reject_immediately(
    client: TcpStream,
    reason: RejectReason,
    record: &mut Record,
) -> Outcome {
    let alert = Alert::InternalError;
    set_graceful_close(&client);
    let _send_result = send(&client, &alert.to_record(), SendFlags::NOSIGNAL);
    record.entry.alert = Some(alert.name());
    record.entry.reason = Some(reason.label());
    Outcome::Rejected(reason)
}

/// Rejects a connection with an alert that no reset overtakes.
///
/// When the agent closes a socket with unread bytes (the hello), the kernel sends a reset. The reset
/// discards an alert that the client has not read (RFC 2525 §2.17). So the agent shuts down its side, then reads and
/// discards until the client closes its own, for up to [`LINGERING_TIMEOUT`].
pub(crate) async fn reject_with_alert(
    client: TcpStream,
    alert: Alert,
    reason: RejectReason,
    record: &mut Record,
) -> Outcome {
    set_graceful_close(&client);
    record.entry.alert = Some(alert.name());
    record.entry.reason = Some(reason.label());
    // The send buffer is empty, so the alert fits. An error means that the client is gone.
    let sent = send(&client, &alert.to_record(), SendFlags::NOSIGNAL)
        .and_then(|_| shutdown(&client, Shutdown::Write));
    if sent.is_ok() {
        let _elapsed = timeout(LINGERING_TIMEOUT, lingering_close(&client)).await;
    }
    Outcome::Rejected(reason)
}

async fn lingering_close(client: &TcpStream) {
    let mut discard_buf = [0; 4096];
    while client.readable().await.is_ok() {
        let read = client.try_io(Interest::READABLE, || {
            Ok(recv(client, &mut discard_buf[..], RecvFlags::empty())?.0)
        });
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}
