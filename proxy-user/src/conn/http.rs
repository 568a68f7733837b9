//! Port 80: HTTP-01 validations by the owner of the name (RFC 8555 §8.3), and the way to https for
//! everything else.

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

use super::Shared;
use super::connect::Connector;
use crate::certs::Keyring;
use crate::config::{Config, Route};
use crate::observe::metrics::Acme;

const CHALLENGES: &str = "/.well-known/acme-challenge/";
/// Connections at once; more wait in the kernel's queue.
const AT_ONCE: usize = 512;
/// How long a request may take to be said, and a connection altogether.
const SAID: Duration = Duration::from_secs(5);
const DONE: Duration = Duration::from_secs(30);
/// How long a back end may take to answer.
const ANSWERED: Duration = Duration::from_secs(10);

type Body = Either<Full<Bytes>, Incoming>;

/// Answers until it is dropped.
pub(crate) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| {
            let shared = Arc::clone(&shared);
            async move { Ok::<_, Infallible>(answer(request, &shared).await) }
        });
        let connection = server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(SAID)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let _cut_off = timeout(DONE, connection).await;
            drop(place);
        });
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Body> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = host.map(|host| host.rsplit_once(':').map_or(host, |(host, _)| host));
    let Some(name) = host.and_then(|host| ServerName::parse(host.as_bytes()).ok()) else {
        return say(StatusCode::BAD_REQUEST, "a Host is needed\n");
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    match path.strip_prefix(CHALLENGES).map(str::to_owned) {
        Some(token) => challenge(request, &name, &token, shared).await,
        None => {
            let mut moved = say(StatusCode::PERMANENT_REDIRECT, "");
            if let Ok(place) = HeaderValue::from_str(&format!("https://{name}{path}")) {
                moved.headers_mut().insert(LOCATION, place);
            }
            moved
        }
    }
}

/// What this agent holds against HTTP-01.
struct Tokens<'t> {
    config: &'t Config,
    keyring: &'t Keyring,
    token: &'t str,
}

impl CertificateLookup for Tokens<'_> {
    type Certificate = String;

    fn pending_challenge(&self, name: &ServerName) -> Option<String> {
        self.keyring.http_answer(name, self.token)
    }

    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<String>> {
        let owner = self.config.terminates.lookup(Some(name))?;
        Some(ManagedName { kind: owner.kind, certificate: None })
    }
}

async fn challenge(
    request: Request<Incoming>,
    name: &ServerName,
    token: &str,
    shared: &Shared,
) -> Response<Body> {
    let config = shared.config.load_full();
    let tokens = Tokens { config: &config, keyring: &shared.keyring, token };
    let verdict = decide_validation(Some(name), &config.routes, config.acme_bypass, &tokens);
    let (decision, route) = match &verdict.action {
        Action::Terminate(_) => ("terminate", None),
        Action::Forward(route) => ("forward", Some(route.label.as_str())),
        Action::Refuse(_) => ("refuse", None),
    };
    let (class, reason) = (verdict.name_class.label(), verdict.reason.label());
    let acme = Acme { class, decision, reason };
    shared.acme_log.tell(Some(name.as_str()), route, &acme, "http-01");
    shared.observers.metrics.acme.get_or_create(&acme).inc();
    match verdict.action {
        Action::Terminate(answer) => say(StatusCode::OK, answer),
        Action::Refuse(_) => say(StatusCode::NOT_FOUND, format!("{reason}\n")),
        Action::Forward(route) => match forward(request, route, &config, shared).await {
            Ok(response) => response.map(Either::Right),
            Err(error) => {
                tracing::debug!(%name, route = route.label, %error, "http-01 not forwarded");
                say(StatusCode::BAD_GATEWAY, "no HTTP back end of the owner answers\n")
            }
        },
    }
}

/// Hands the request to the first HTTP back end that takes it.
async fn forward(
    request: Request<Incoming>,
    route: &Route,
    config: &Config,
    shared: &Shared,
) -> io::Result<Response<Incoming>> {
    let connector = Connector::plain(&config.limits, &shared.resolver);
    let mut last = io::Error::other("the route names no http_backends");
    for backend in &route.http_backends {
        match timeout(config.limits.dial_timeout, connector.connect(backend)).await {
            Ok(Ok(connected)) => {
                let socket = connected.socket;
                let shaken = client::conn::http1::handshake(TokioIo::new(socket)).await;
                let (mut sender, connection) = shaken.map_err(io::Error::other)?;
                tokio::spawn(connection);
                let answered = timeout(ANSWERED, sender.send_request(request)).await?;
                return answered.map_err(io::Error::other);
            }
            Ok(Err(error)) => last = error,
            Err(late) => last = late.into(),
        }
    }
    Err(last)
}

fn say(status: StatusCode, words: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::from(words.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
