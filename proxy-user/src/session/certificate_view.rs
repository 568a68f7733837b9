//! The certificates of the agent, as a decision looks them up.

use std::sync::Arc;

use rustls::ServerConfig;
use snisplit_common::decide::{CertificateLookup, ManagedName};
use snisplit_common::server_name::ServerName;

use crate::certs::CertStore;
use crate::config::{Config, Terminate};

/// The names of `[[terminate]]` entries and their certificates.
#[derive(Clone, Copy)]
pub(crate) struct CertificateView<'p> {
    pub(crate) config: &'p Config,
    pub(crate) cert_store: &'p CertStore,
}

/// What the agent terminates a connection with.
pub(crate) enum TlsMaterial {
    /// The certificate that answers a TLS-ALPN-01 validation.
    Challenge(Arc<ServerConfig>),
    /// The certificate of a name, and the entry with its back ends.
    Certificate(Arc<Terminate>, Arc<ServerConfig>),
}

impl CertificateLookup for CertificateView<'_> {
    type Certificate = TlsMaterial;

    fn pending_challenge(&self, name: &ServerName) -> Option<TlsMaterial> {
        self.cert_store.tls_challenge(name).map(TlsMaterial::Challenge)
    }

    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<TlsMaterial>> {
        let route_match = self.config.terminates.lookup(Some(name))?;
        let tls_config = self.cert_store.server_config(&route_match.route.route.label, name);
        let material = tls_config
            .map(|config| TlsMaterial::Certificate(Arc::clone(route_match.route), config));
        Some(ManagedName { kind: route_match.kind, certificate: material })
    }
}
