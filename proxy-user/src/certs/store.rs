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

/// Certificates in use and pending challenges. Clones share one store.
#[derive(Clone, Debug, Default)]
pub(crate) struct CertStore(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// By label: the first name of the `[[terminate]]` entry.
    served: ArcSwap<HashMap<String, Arc<ServedName>>>,
    tls_challenges: Mutex<HashMap<ServerName, Arc<ServerConfig>>>,
    /// Key authorizations by name and token.
    http_challenges: Mutex<HashMap<(ServerName, String), String>>,
}

/// TLS configuration of a `[[terminate]]` entry, with its certificate.
#[derive(Debug)]
struct ServedName {
    cert: Arc<SwappableCert>,
    alpn: Vec<Vec<u8>>,
    config: Arc<ServerConfig>,
}

/// Certificate that can be replaced while connections use it; empty before the first order ends.
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

/// Answer to a challenge in the store. Dropping the guard removes it.
pub(crate) struct ChallengeGuard {
    store: CertStore,
    key: ChallengeKey,
}

enum ChallengeKey {
    Tls(ServerName),
    Http(ServerName, String),
}

impl CertStore {
    /// Replaces the served names by those of a configuration, and keeps the certificates of names that
    /// stay.
    ///
    /// # Errors
    ///
    /// The random generator fails when it creates the key of the session tickets.
    pub(crate) fn apply(&self, config: &Config) -> Result<(), rustls::Error> {
        let previous = self.0.served.load_full();
        let mut served = HashMap::new();
        for terminate in config.terminates.iter() {
            let label = terminate.route.label.clone();
            let entry = match previous.get(&label) {
                Some(unchanged) if unchanged.alpn == terminate.alpn => Arc::clone(unchanged),
                other => Arc::new(build_served_name(
                    terminate,
                    other.map(|other| Arc::clone(&other.cert)),
                )?),
            };
            served.insert(label, entry);
        }
        self.0.served.store(Arc::new(served));
        Ok(())
    }

    /// Installs the certificate of a `[[terminate]]` entry for new connections.
    pub(crate) fn install(&self, label: &str, key: CertifiedKey, info: CertInfo) {
        if let Some(served) = self.0.served.load().get(label) {
            served.cert.0.store(Some(Arc::new(LoadedCert { key: Arc::new(key), info })));
        }
    }

    /// Returns the TLS configuration for a name; `None` while no certificate covers it.
    pub(crate) fn server_config(
        &self,
        label: &str,
        name: &ServerName,
    ) -> Option<Arc<ServerConfig>> {
        let all = self.0.served.load();
        let served = all.get(label)?;
        let loaded = served.cert.0.load();
        loaded.as_ref()?.info.covers(name).then(|| Arc::clone(&served.config))
    }

    /// Returns the labels of entries that have no certificate yet, sorted.
    pub(crate) fn missing(&self) -> Vec<String> {
        let served = self.0.served.load();
        let without_certificate =
            served.iter().filter(|(_, served)| served.cert.0.load().is_none());
        let mut labels: Vec<String> = without_certificate.map(|(label, _)| label.clone()).collect();
        labels.sort();
        labels
    }

    /// Answers TLS-ALPN-01 validations of a name until the guard is dropped.
    pub(crate) fn add_tls_challenge(
        &self,
        name: &ServerName,
        config: ServerConfig,
    ) -> ChallengeGuard {
        lock(&self.0.tls_challenges).insert(name.clone(), Arc::new(config));
        ChallengeGuard { store: self.clone(), key: ChallengeKey::Tls(name.clone()) }
    }

    /// Returns the answer to a TLS-ALPN-01 validation of exactly this name.
    pub(crate) fn tls_challenge(&self, name: &ServerName) -> Option<Arc<ServerConfig>> {
        lock(&self.0.tls_challenges).get(name).cloned()
    }

    /// Answers HTTP-01 validations of a name and token until the guard is dropped.
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

    /// Returns the key authorization for an HTTP-01 validation of exactly this name and token.
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
    // Session tickets instead of a session cache: the agent keeps no state for idle clients.
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
            ChallengeKey::Tls(name) => write!(f, "ChallengeGuard(tls-alpn-01, {name})"),
            ChallengeKey::Http(name, _) => write!(f, "ChallengeGuard(http-01, {name})"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
