//! The HTTP listener: HTTP-01 validations (RFC 8555 §8.3) go to the owner of the name, and every other
//! request gets a redirect to https.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use snisplit_common::decide::{Action, CertificateLookup, ManagedName, decide_validation};
use snisplit_common::server_name::ServerName;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::certs::CertStore;
use crate::config::{Config, Route};
use crate::downstream::accept::Acceptor;
use crate::session::context::Shared;
use crate::telemetry::metrics::AcmeLabels;
use crate::upstream::connect::Connector;

const ACME_HTTP01_PREFIX: &str = "/.well-known/acme-challenge/";
/// Maximum number of open connections. Further ones wait in the backlog of listen(2).
const MAX_CONNECTIONS: usize = 512;
/// Maximum time until the head of a request is complete.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time of a connection, from accept on.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time until a back end sends the head of its response.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(10);

type Body = Either<Full<Bytes>, Incoming>;

/// Serves HTTP on a listener until the future is dropped.
pub(crate) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let mut acceptor = Acceptor::new(listener, &shared.telemetry.metrics);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, _) = acceptor.accept().await;
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| {
            let shared = Arc::clone(&shared);
            async move { Ok::<_, Infallible>(handle(request, &shared).await) }
        });
        let connection = server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let _elapsed = timeout(CONNECTION_TIMEOUT, connection).await;
            drop(permit);
        });
    }
}

/// Answers a request.
async fn handle(request: Request<Incoming>, shared: &Shared) -> Response<Body> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = host.map(|host| host.rsplit_once(':').map_or(host, |(host, _)| host));
    let Some(name) = host.and_then(|host| ServerName::parse(host.as_bytes()).ok()) else {
        return text_response(StatusCode::BAD_REQUEST, "a Host is needed\n");
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    match path.strip_prefix(ACME_HTTP01_PREFIX).map(str::to_owned) {
        Some(token) => serve_challenge(request, &name, &token, shared).await,
        None => {
            let mut redirect = text_response(StatusCode::PERMANENT_REDIRECT, "");
            if let Ok(location) = HeaderValue::from_str(&format!("https://{name}{path}")) {
                redirect.headers_mut().insert(LOCATION, location);
            }
            redirect
        }
    }
}

/// The HTTP-01 challenges of the agent, as a decision looks up the one with `token`.
struct TokenView<'t> {
    config: &'t Config,
    cert_store: &'t CertStore,
    token: &'t str,
}

impl CertificateLookup for TokenView<'_> {
    type Certificate = String;

    fn pending_challenge(&self, name: &ServerName) -> Option<String> {
        self.cert_store.http_challenge(name, self.token)
    }

    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<String>> {
        let owner = self.config.terminates.lookup(Some(name))?;
        Some(ManagedName { kind: owner.kind, certificate: None })
    }
}

/// Answers a request of a CA, or forwards it to the owner of the name.
async fn serve_challenge(
    request: Request<Incoming>,
    name: &ServerName,
    token: &str,
    shared: &Shared,
) -> Response<Body> {
    let config = shared.config.load_full();
    let token_view = TokenView { config: &config, cert_store: &shared.cert_store, token };
    let decision = decide_validation(Some(name), &config.routes, config.acme_bypass, &token_view);
    let route = match &decision.action {
        Action::Forward(route) => Some(route.label.as_str()),
        Action::Terminate(_) | Action::Reject(_) => None,
    };
    let acme = AcmeLabels::new(&decision);
    shared.acme_log.log(Some(name.as_str()), route, &acme, "http-01");
    shared.telemetry.metrics.acme_validations.get_or_create(&acme).inc();
    match decision.action {
        Action::Terminate(key_authorization) => text_response(StatusCode::OK, key_authorization),
        Action::Reject(_) => {
            text_response(StatusCode::NOT_FOUND, format!("{}\n", decision.reason.label()))
        }
        Action::Forward(route) => match forward_challenge(request, route, &config, shared).await {
            Ok(response) => response.map(Either::Right),
            Err(error) => {
                tracing::debug!(%name, route = route.label, %error, "HTTP-01 validation not forwarded");
                text_response(StatusCode::BAD_GATEWAY, "no HTTP back end of the owner answers\n")
            }
        },
    }
}

/// Sends the request to the first of the route's `http_backends` that accepts a connection.
///
/// # Errors
///
/// No back end accepts a connection, or the one that does sends no response in time.
async fn forward_challenge(
    request: Request<Incoming>,
    route: &Route,
    config: &Config,
    shared: &Shared,
) -> io::Result<Response<Incoming>> {
    let connector = Connector::new(&config.limits, &shared.resolver);
    let mut last_error = io::Error::other("the route names no http_backends");
    for backend in &route.http_backends {
        match timeout(config.limits.connect_timeout, connector.connect(backend)).await {
            Ok(Ok(connected)) => {
                let socket = connected.socket;
                let handshake = client::conn::http1::handshake(TokioIo::new(socket)).await;
                let (mut sender, connection) = handshake.map_err(io::Error::other)?;
                tokio::spawn(connection);
                let response = timeout(BACKEND_TIMEOUT, sender.send_request(request)).await?;
                return response.map_err(io::Error::other);
            }
            Ok(Err(error)) => last_error = error,
            Err(elapsed) => last_error = elapsed.into(),
        }
    }
    Err(last_error)
}

fn text_response(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::from(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
