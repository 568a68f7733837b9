//! The HTTP listener: HTTP-01 validations (RFC 8555 §8.3) go to the owner of the name. Other requests for a name
//! that a route names get a redirect to https.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, LOCATION, USER_AGENT};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use snisplit_common::decide::{Action, CertificateLookup, ManagedName, decide_validation};
use snisplit_common::http01::{Resource, classify_target};
use snisplit_common::route_table::MatchKind;
use snisplit_common::server_name::ServerName;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::certs::CertStore;
use crate::config::{Config, Route};
use crate::downstream::accept::Acceptor;
use crate::engine::Socket;
use crate::session::context::Shared;
use crate::telemetry::metrics::AcmeLabels;
use crate::upstream::connect::Connector;

/// Maximum number of open connections. Further ones wait in the backlog of listen(2).
const MAX_CONNECTIONS: usize = 512;
/// Maximum time until the head of a request is complete.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time of a connection, from accept on.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time until a back end has sent its response.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of the body of a back end's response, in bytes. A key authorization has some 90.
const MAX_RESPONSE_LEN: usize = 16 << 10;
/// Header fields of a back end's response that the CA receives.
const RESPONSE_HEADERS: [hyper::header::HeaderName; 2] = [CONTENT_TYPE, LOCATION];

type Body = Full<Bytes>;

/// Serves HTTP on a listener until the future is dropped.
pub(crate) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let mut acceptor = Acceptor::new(listener, &shared.telemetry.metrics);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, client_addr) = acceptor.accept().await;
        let local_addr = stream.local_addr();
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| {
            let shared = Arc::clone(&shared);
            let local_addr = local_addr.as_ref().ok().copied();
            async move {
                let destination = || local_addr.ok_or_else(|| io::ErrorKind::NotConnected.into());
                if shared.loop_detector.is_loop(client_addr, destination) {
                    let text = "a route leads back to this agent\n";
                    return Ok(text_response(StatusCode::LOOP_DETECTED, text));
                }
                Ok::<_, Infallible>(handle(request, &shared).await)
            }
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
    let Some(name) = requested_name(&request) else {
        return text_response(StatusCode::BAD_REQUEST, "one Host with a name is needed\n");
    };
    let config = shared.config.load_full();
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    match classify_target(target) {
        Resource::KeyAuthorization(token) if is_read(request.method()) => {
            let validation = Validation { method: request.method(), name: &name, target, token };
            serve_challenge(validation, &config, shared).await
        }
        Resource::KeyAuthorization(_) => {
            let mut response = text_response(StatusCode::METHOD_NOT_ALLOWED, "");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        Resource::InvalidToken => text_response(StatusCode::NOT_FOUND, "invalid token\n"),
        Resource::Other => redirect_to_https(&name, target, &config),
    }
}

/// Returns the name in the only Host field. A target in absolute form could name another host (RFC 9112 §3.2.2).
fn requested_name(request: &Request<Incoming>) -> Option<ServerName> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None, None) = (hosts.next(), hosts.next(), request.uri().authority()) else {
        return None;
    };
    let host = host.to_str().ok()?;
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    ServerName::parse(name.as_bytes()).ok()
}

fn is_read(method: &Method) -> bool {
    [Method::GET, Method::HEAD].contains(method)
}

/// Redirects to https if a route names the host. A redirect for other names would let a back end with the catch-all
/// answer validations by files, such as those in `/.well-known/pki-validation/`.
fn redirect_to_https(name: &ServerName, target: &str, config: &Config) -> Response<Body> {
    let route = config.routes.lookup(Some(name));
    let is_routed = route.is_some_and(|route| route.kind != MatchKind::Default);
    if !is_routed && config.terminates.lookup(Some(name)).is_none() {
        return text_response(StatusCode::NOT_FOUND, "no route names this host\n");
    }
    let mut redirect = text_response(StatusCode::PERMANENT_REDIRECT, "");
    if let Ok(location) = HeaderValue::from_str(&format!("https://{name}{target}")) {
        redirect.headers_mut().insert(LOCATION, location);
    }
    redirect
}

/// Request of a CA for a key authorization.
#[derive(Clone, Copy)]
struct Validation<'v> {
    method: &'v Method,
    name: &'v ServerName,
    /// The path, which ends in the token.
    target: &'v str,
    token: &'v str,
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
    validation: Validation<'_>,
    config: &Config,
    shared: &Shared,
) -> Response<Body> {
    let Validation { name, token, .. } = validation;
    let token_view = TokenView { config, cert_store: &shared.cert_store, token };
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
        Action::Forward(route) => {
            match forward_challenge(validation, route, config, shared).await {
                Ok(response) => response,
                Err(error) => {
                    tracing::debug!(%name, route = route.label, %error, "HTTP-01 validation not forwarded");
                    text_response(
                        StatusCode::BAD_GATEWAY,
                        "no HTTP back end of the owner answers\n",
                    )
                }
            }
        }
    }
}

/// Requests the key authorization from the first of the route's `http_backends` that accepts a connection.
///
/// # Errors
///
/// No back end accepts a connection, or the one that does sends no valid response in time.
async fn forward_challenge(
    validation: Validation<'_>,
    route: &Route,
    config: &Config,
    shared: &Shared,
) -> io::Result<Response<Body>> {
    let connector = Connector::new(&config.limits, &shared.resolver);
    let mut last_error = io::Error::other("the route names no http_backends");
    for backend in &route.http_backends {
        match timeout(config.limits.connect_timeout, connector.connect(backend)).await {
            Ok(Ok(connected)) => {
                let addresses = connected.socket.addresses()?;
                let _loop_guard = addresses.and_then(|(local_addr, peer_addr)| {
                    shared.loop_detector.register(local_addr, peer_addr)
                });
                return timeout(BACKEND_TIMEOUT, request_from(connected.socket, validation))
                    .await?;
            }
            Ok(Err(error)) => last_error = error,
            Err(elapsed) => last_error = elapsed.into(),
        }
    }
    Err(last_error)
}

/// Sends a request of its own on a connection to a back end, so that no field of the client's request reaches it.
///
/// # Errors
///
/// The connection fails, or the response is malformed or too long.
async fn request_from(socket: Socket, validation: Validation<'_>) -> io::Result<Response<Body>> {
    let Validation { method, name, target, .. } = validation;
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(HOST, name.as_str())
        .header(USER_AGENT, concat!("snisplit/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let handshake = client::conn::http1::handshake(TokioIo::new(socket)).await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let (head, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
    let body = Limited::new(body, MAX_RESPONSE_LEN).collect().await.map_err(io::Error::other)?;
    drop(driver);
    let mut response = Response::new(Full::from(body.to_bytes()));
    *response.status_mut() = head.status;
    for name in RESPONSE_HEADERS {
        if let Some(value) = head.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

fn text_response(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::from(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
