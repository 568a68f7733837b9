//! The certificates in use and the answers to challenges, shared by all connections.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use snisplit_common::server_name::ServerName;

use super::info::CertInfo;
use crate::config::{Config, Terminate};

/// All of them; cloning shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct CertStore(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// By the first name of a `[[terminate]]`.
    served: ArcSwap<HashMap<String, Arc<ServedName>>>,
    tls_challenges: Mutex<HashMap<ServerName, Arc<ServerConfig>>>,
    /// Key authorizations by name and token.
    http_challenges: Mutex<HashMap<(ServerName, String), String>>,
}

/// One certificate and how it is served.
#[derive(Debug)]
struct ServedName {
    cert: Arc<SwappableCert>,
    alpn: Vec<Vec<u8>>,
    config: Arc<ServerConfig>,
}

/// Holds a certificate that may be replaced while it is served.
#[derive(Debug, Default)]
struct SwappableCert(ArcSwapOption<LoadedCert>);

#[derive(Debug)]
struct LoadedCert {
    key: Arc<CertifiedKey>,
    info: CertInfo,
}

impl ResolvesServerCert for SwappableCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().as_ref()?.key))
    }
}

/// An answer to a challenge; dropping it takes it back.
pub(crate) struct ChallengeGuard {
    store: CertStore,
    key: ChallengeKey,
}

enum ChallengeKey {
    Tls(ServerName),
    Http(ServerName, String),
}

impl CertStore {
    /// Serves what a configuration terminates, with the certificates that are there already.
    pub(crate) fn apply(&self, config: &Config) -> Result<(), rustls::Error> {
        let previous = self.0.served.load_full();
        let mut served = HashMap::new();
        for one in config.terminates.iter() {
            let label = one.route.label.clone();
            let entry = match previous.get(&label) {
                Some(unchanged) if unchanged.alpn == one.alpn => Arc::clone(unchanged),
                other => {
                    Arc::new(build_served_name(one, other.map(|other| Arc::clone(&other.cert)))?)
                }
            };
            served.insert(label, entry);
        }
        self.0.served.store(Arc::new(served));
        Ok(())
    }

    /// From now on this is the certificate of a `[[terminate]]`.
    pub(crate) fn install(&self, label: &str, key: CertifiedKey, info: CertInfo) {
        if let Some(served) = self.0.served.load().get(label) {
            served.cert.0.store(Some(Arc::new(LoadedCert { key: Arc::new(key), info })));
        }
    }

    /// How to terminate ordinary traffic to a name, once there is a certificate for it.
    pub(crate) fn server_config(
        &self,
        label: &str,
        name: &ServerName,
    ) -> Option<Arc<ServerConfig>> {
        let served = self.0.served.load();
        let served = served.get(label)?;
        let installed = served.cert.0.load();
        installed.as_ref()?.info.covers(name).then(|| Arc::clone(&served.config))
    }

    /// The first names of those that have no certificate yet.
    pub(crate) fn missing(&self) -> Vec<String> {
        let served = self.0.served.load();
        let without_certificate =
            served.iter().filter(|(_, served)| served.cert.0.load().is_none());
        let mut labels: Vec<String> = without_certificate.map(|(label, _)| label.clone()).collect();
        labels.sort();
        labels
    }

    /// Answers TLS-ALPN-01 validations of a name.
    pub(crate) fn add_tls_challenge(
        &self,
        name: &ServerName,
        config: ServerConfig,
    ) -> ChallengeGuard {
        lock(&self.0.tls_challenges).insert(name.clone(), Arc::new(config));
        ChallengeGuard { store: self.clone(), key: ChallengeKey::Tls(name.clone()) }
    }

    /// The answer to a TLS-ALPN-01 validation of exactly this name.
    pub(crate) fn tls_challenge(&self, name: &ServerName) -> Option<Arc<ServerConfig>> {
        lock(&self.0.tls_challenges).get(name).cloned()
    }

    /// Answers HTTP-01 validations of a name.
    pub(crate) fn add_http_challenge(
        &self,
        name: &ServerName,
        token: &str,
        key_authorization: &str,
    ) -> ChallengeGuard {
        let key = (name.clone(), token.to_owned());
        lock(&self.0.http_challenges).insert(key.clone(), key_authorization.to_owned());
        ChallengeGuard { store: self.clone(), key: ChallengeKey::Http(key.0, key.1) }
    }

    /// The answer to an HTTP-01 validation of exactly this name and token.
    pub(crate) fn http_challenge(&self, name: &ServerName, token: &str) -> Option<String> {
        lock(&self.0.http_challenges).get(&(name.clone(), token.to_owned())).cloned()
    }
}

fn build_served_name(
    terminate: &Terminate,
    cert: Option<Arc<SwappableCert>>,
) -> Result<ServedName, rustls::Error> {
    let cert = cert.unwrap_or_default();
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let resolver: Arc<dyn ResolvesServerCert> = cert.clone();
    let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols.clone_from(&terminate.alpn);
    // Tickets rather than a table of sessions: nothing is held for a client that is gone.
    config.ticketer = Ticketer::new()?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(ServedName { cert, alpn: terminate.alpn.clone(), config: Arc::new(config) })
}

impl Drop for ChallengeGuard {
    fn drop(&mut self) {
        match &self.key {
            ChallengeKey::Tls(name) => _ = lock(&self.store.0.tls_challenges).remove(name),
            ChallengeKey::Http(name, token) => {
                let key = (name.clone(), token.clone());
                lock(&self.store.0.http_challenges).remove(&key);
            }
        }
    }
}

impl fmt::Debug for ChallengeGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            ChallengeKey::Tls(name) => write!(f, "Pending(tls-alpn-01, {name})"),
            ChallengeKey::Http(name, _) => write!(f, "Pending(http-01, {name})"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
