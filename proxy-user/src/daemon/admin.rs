//! The admin port: read-only HTTP with `/metrics`, `/healthz` and `/readyz`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::downstream::accept::Acceptor;
use crate::telemetry::Metrics;

const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Maximum number of open connections. Further ones wait in the backlog of listen(2).
const MAX_CONNECTIONS: usize = 64;
/// Maximum time until the head of a request is complete, and that a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves requests until the future is dropped. `missing` returns the names that have no certificate
/// yet.
pub(super) async fn serve<L>(listener: TcpListener, metrics: Metrics, missing: L)
where
    L: Fn() -> Vec<String> + Clone + Send + 'static,
{
    let mut acceptor = Acceptor::new(listener, &metrics);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, _) = acceptor.accept().await;
        let (metrics, missing) = (metrics.clone(), missing.clone());
        let service = service_fn(move |request| {
            let response = respond(&request, &metrics, &missing);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let _closed = connection.await;
            drop(permit);
        });
    }
}

fn respond(
    request: &Request<Incoming>,
    metrics: &Metrics,
    missing: impl Fn() -> Vec<String>,
) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, OPENMETRICS_CONTENT_TYPE, metrics.encode())
        }
        (&Method::GET | &Method::HEAD, "/healthz") => {
            (StatusCode::OK, "text/plain", String::from("ok\n"))
        }
        (&Method::GET | &Method::HEAD, "/readyz") => match missing().as_slice() {
            [] => (StatusCode::OK, "text/plain", String::from("ok\n")),
            names => {
                let message = format!("no certificate yet: {}\n", names.join(" "));
                (StatusCode::SERVICE_UNAVAILABLE, "text/plain", message)
            }
        },
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, "text/plain", String::from("/metrics /healthz /readyz\n"))
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::from("read-only\n")),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
