//! Says no: a TLS alert that arrives, a counter, a close.

use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use snisplit_common::alert::Alert;
use snisplit_common::client_hello::ClientHelloError;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::peek::NoHello;
use crate::engine::without_reset;
use crate::observe::{Outcome, Record};

/// How long a refused client may take to close its side.
const LINGER: Duration = Duration::from_secs(1);

/// Ends a connection that brought no hello.
pub(super) async fn without_hello(client: TcpStream, why: NoHello, record: &mut Record) -> Outcome {
    let (alert, reason) = match why {
        NoHello::Bad(bad) => (ClientHelloError::alert(bad), bad.label()),
        NoHello::BadHeader(bad) => (Alert::UnexpectedMessage, bad.label()),
        NoHello::HeaderNotAllowed => (Alert::UnexpectedMessage, "proxy_header_not_allowed"),
        NoHello::Late { anything: true } => (Alert::HandshakeFailure, "hello_timeout"),
        NoHello::Late { anything: false } => (Alert::HandshakeFailure, "silent"),
        NoHello::Truncated => (Alert::DecodeError, "truncated_hello"),
        NoHello::Gone => {
            without_reset(&client);
            return Outcome::ClientGone;
        }
    };
    refuse(client, alert, reason, record).await
}

/// Turns a connection away at the door. There may be many of these, so none is waited for: the
/// alert arrives unless a hello is on its way already.
pub(super) fn turn_away(client: TcpStream, reason: &'static str, record: &mut Record) -> Outcome {
    let alert = Alert::InternalError;
    without_reset(&client);
    let _gone_already = send(&client, &alert.to_record(), SendFlags::NOSIGNAL);
    record.entry.alert = Some(alert.name());
    record.entry.reason = Some(reason);
    Outcome::Refused(reason)
}

/// Sends the alert and sees to it that it is not overtaken by a reset.
///
/// Closing a socket with unread bytes (the hello) makes the kernel send a reset, which throws away
/// an alert that the client has not read yet (RFC 2525 §2.17). So: end our side, then read and
/// forget until the client ends its own, within a second.
pub(super) async fn refuse(
    client: TcpStream,
    alert: Alert,
    reason: &'static str,
    record: &mut Record,
) -> Outcome {
    without_reset(&client);
    record.entry.alert = Some(alert.name());
    record.entry.reason = Some(reason);
    // Nothing was sent before, so the buffer has room; a client that is gone needs no alert.
    let told = send(&client, &alert.to_record(), SendFlags::NOSIGNAL)
        .and_then(|_| shutdown(&client, Shutdown::Write));
    if told.is_ok() {
        let _still_there = timeout(LINGER, read_out(&client)).await;
    }
    Outcome::Refused(reason)
}

async fn read_out(client: &TcpStream) {
    let mut scrap = [0; 4096];
    while client.readable().await.is_ok() {
        let read = client
            .try_io(Interest::READABLE, || Ok(recv(client, &mut scrap[..], RecvFlags::empty())?.0));
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}
