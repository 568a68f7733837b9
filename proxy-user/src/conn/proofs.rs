//! What this agent holds, as a decision wants to know it.

use std::sync::Arc;

use rustls::ServerConfig;
use snisplit_common::decide::{CertificateLookup, ManagedName};
use snisplit_common::server_name::ServerName;

use crate::certs::Keyring;
use crate::config::{Config, Terminate};

/// The names of a configuration and the certificates that are there for them.
#[derive(Clone, Copy)]
pub(crate) struct Proofs<'p> {
    pub(crate) config: &'p Config,
    pub(crate) keyring: &'p Keyring,
}

/// What a connection is terminated with.
pub(crate) enum Held {
    /// The answer to a CA's validation.
    Challenge(Arc<ServerConfig>),
    /// The certificate of a name, and where its traffic goes.
    Certificate(Arc<Terminate>, Arc<ServerConfig>),
}

impl CertificateLookup for Proofs<'_> {
    type Certificate = Held;

    fn pending_challenge(&self, name: &ServerName) -> Option<Held> {
        self.keyring.tls_answer(name).map(Held::Challenge)
    }

    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<Held>> {
        let owner = self.config.terminates.lookup(Some(name))?;
        let serving = self.keyring.serving(&owner.route.route.label, name);
        let held = serving.map(|config| Held::Certificate(Arc::clone(owner.route), config));
        Some(ManagedName { kind: owner.kind, certificate: held })
    }
}
