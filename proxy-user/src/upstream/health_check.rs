//! Health checks of back ends: a TCP connection, or a TLS handshake on it.
//!
//! The kernel of a back end accepts connections even if its server hangs; a handshake finds this out. The
//! check verifies no certificate, because snisplit does not know which ones are right.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use snisplit_common::server_name::Pattern;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::config::{Backend, Config, HealthCheckKind, Limits, Route};
use crate::upstream::connect::Connector;
use crate::upstream::resolve::Resolver;
use crate::upstream::select::Backends;

/// The running health checks, one task each.
pub(crate) struct HealthChecker {
    context: CheckContext,
    running: HashMap<CheckTarget, JoinHandle<()>>,
}

/// What the checks share.
#[derive(Clone)]
struct CheckContext {
    backends: Backends,
    resolver: Resolver,
    /// `limits` of the last configuration that was applied.
    limits: Arc<ArcSwap<Limits>>,
}

/// Parameters of one health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CheckTarget {
    backend: Backend,
    kind: HealthCheckKind,
    interval: Duration,
    rise: u32,
    fall: u32,
    /// Server name of the handshake; `None` for the address of the back end.
    server_name: Option<String>,
}

impl HealthChecker {
    pub(crate) fn new(backends: Backends, resolver: Resolver, limits: Limits) -> Self {
        let limits = Arc::new(ArcSwap::from_pointee(limits));
        Self { context: CheckContext { backends, resolver, limits }, running: HashMap::new() }
    }

    /// Starts the checks of a configuration and stops all others. A check with the same parameters continues.
    pub(crate) fn apply(&mut self, config: &Config) {
        self.context.limits.store(Arc::new(config.limits.clone()));
        let targets: Vec<CheckTarget> = config.all_routes().flat_map(check_targets).collect();
        self.running.retain(|target, task| {
            let stays = targets.contains(target);
            if !stays {
                task.abort();
            }
            stays
        });
        for target in targets {
            let probes = probe_loop(target.clone(), self.context.clone());
            self.running.entry(target).or_insert_with(|| tokio::spawn(probes));
        }
    }
}

fn check_targets(route: &Route) -> Vec<CheckTarget> {
    let Some(kind) = route.health_check.kind else { return Vec::new() };
    let name = route.names.iter().find_map(|pattern| match pattern {
        Pattern::Exact(name) => Some(name.to_string()),
        Pattern::Wildcard(_) | Pattern::Default => None,
    });
    let target = |backend: &Backend| CheckTarget {
        backend: backend.clone(),
        kind,
        interval: route.health_check.interval,
        rise: route.health_check.rise,
        fall: route.health_check.fall,
        server_name: name.clone(),
    };
    route.backends.iter().map(target).collect()
}

async fn probe_loop(target: CheckTarget, context: CheckContext) {
    loop {
        let limits = context.limits.load_full();
        let connector = Connector::new(&limits, &context.resolver);
        let probe_timeout = target.interval.min(limits.connect_timeout);
        let probe = timeout(probe_timeout, probe_backend(&target, connector));
        let answered = matches!(probe.await, Ok(Ok(())));
        context.backends.record_check(&target.backend, answered, target.rise, target.fall);
        sleep(jittered(target.interval)).await;
    }
}

/// Returns 0.9 to 1.1 of `time`, at random, so that many agents do not check a back end at the same time.
fn jittered(time: Duration) -> Duration {
    let random = (RandomState::new().hash_one(()) >> 11) as f64 / (1_u64 << 53) as f64;
    time.mul_f64(0.9 + 0.2 * random)
}

async fn probe_backend(target: &CheckTarget, connector: Connector<'_>) -> Result<()> {
    let socket = connector.connect(&target.backend).await?.socket;
    if target.kind == HealthCheckKind::Tls {
        let address = match socket.addresses()? {
            Some((_, peer)) => peer.ip(),
            None => Ipv4Addr::UNSPECIFIED.into(),
        };
        let name = target.server_name.clone().map(ServerName::try_from).transpose()?;
        let tls = TlsConnector::from(Arc::new(tls_client_config()?));
        tls.connect(name.unwrap_or(ServerName::IpAddress(address.into())), socket).await?;
    }
    Ok(())
}

fn tls_client_config() -> Result<ClientConfig> {
    let provider = Arc::new(default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NoCertVerification))
        .with_no_client_auth())
}

/// A verifier that accepts every certificate.
#[derive(Debug)]
struct NoCertVerification;

impl ServerCertVerifier for NoCertVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
