//! The PROXY header that a back end gets, if its route has `send_proxy`.

use snisplit_common::client_hello::{ClientHello, Sni};
use snisplit_common::proxy_protocol::encode;
use tokio::net::TcpStream;

use crate::config::Route;
use crate::telemetry::Record;

/// Encodes the header to send; empty for none. ACME validations get one too.
///
/// The addresses are those that a trusted proxy sent, and otherwise those of the connection.
pub(crate) fn encode_header(
    route: &Route,
    hello: &ClientHello,
    client: &TcpStream,
    record: &Record,
) -> Vec<u8> {
    let Some(version) = route.send_proxy else { return Vec::new() };
    let local_addr = client.local_addr().unwrap_or(record.entry.listener);
    let destination = record.destination.unwrap_or(local_addr);
    let name = match &hello.sni {
        Sni::Name(name) => Some(name.as_str()),
        Sni::Absent | Sni::Invalid(_) => None,
    };
    let alpn = hello.alpn.first().map(Vec::as_slice);
    encode(version, record.entry.client, destination, name, alpn)
}
