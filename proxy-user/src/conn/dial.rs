//! Connects to a back end of the route, the next one if one does not answer.
//!
//! Trying again is safe: the hello is still unread in the client's socket, nothing was sent.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tracing::debug;

use crate::config::{Backend, Route};
use crate::observe::Metrics;
use crate::observe::metrics::Dial;

/// No back end of the route answered.
pub(super) struct NoBackend;

/// Tries every address of every back end once, starting where the last connection did not.
/// `limit` bounds each attempt, name resolution included. The first to take `preface` is it.
pub(super) async fn backend(
    route: &Route,
    limit: Duration,
    preface: &[u8],
    metrics: &Metrics,
) -> Result<TcpStream, NoBackend> {
    for backend in route.backends_in_turn() {
        match timeout(limit, greet(backend, preface)).await.unwrap_or_else(|late| Err(late.into()))
        {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                debug!(route = route.label, %backend, %error, "dial failed");
                let labels = Dial { backend: backend.to_string() };
                metrics.dial_failures.get_or_create(&labels).inc();
            }
        }
    }
    Err(NoBackend)
}

async fn greet(backend: &Backend, preface: &[u8]) -> io::Result<TcpStream> {
    let mut stream = connect(backend).await?;
    stream.write_all(preface).await?;
    Ok(stream)
}

async fn connect(backend: &Backend) -> io::Result<TcpStream> {
    match backend {
        Backend::Address(address) => TcpStream::connect(address).await,
        Backend::Name(host, port) => {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for address in lookup_host((host.as_str(), *port)).await?.collect::<Vec<SocketAddr>>() {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}
