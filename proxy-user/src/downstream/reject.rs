//! Says no: a TLS alert that arrives, a counter, a close.

use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use snisplit_common::alert::Alert;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::downstream::preamble::PreambleError;
use crate::engine::set_graceful_close;
use crate::telemetry::{Outcome, Record, RejectReason};

/// How long a refused client may take to close its side.
const LINGERING_TIMEOUT: Duration = Duration::from_secs(1);

/// Ends a connection that brought no hello.
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

/// Turns a connection away at the door. There may be many of these, so none is waited for: the
/// alert arrives unless a hello is on its way already.
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

/// Sends the alert and sees to it that it is not overtaken by a reset.
///
/// Closing a socket with unread bytes (the hello) makes the kernel send a reset, which throws away
/// an alert that the client has not read yet (RFC 2525 §2.17). So: end our side, then read and
/// forget until the client ends its own, within a second.
pub(crate) async fn reject_with_alert(
    client: TcpStream,
    alert: Alert,
    reason: RejectReason,
    record: &mut Record,
) -> Outcome {
    set_graceful_close(&client);
    record.entry.alert = Some(alert.name());
    record.entry.reason = Some(reason.label());
    // Nothing was sent before, so the buffer has room; a client that is gone needs no alert.
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
