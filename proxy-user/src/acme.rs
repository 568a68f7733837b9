//! Certificates of our own: a keeper for each, an account for all.
//!
//! Nothing here waits for the CA before the agent serves: passthrough works from the first second,
//! and certificates come when they can.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::task::JoinHandle;

use crate::certs::CertStore;
use crate::config::{AcmeConfig, Config};
use certificate_task::CertificateTask;
use context::AcmeContext;
use spec::CertificateSpec;

mod account;
mod certificate_task;
mod context;
mod dns01;
mod http_client;
mod order;
mod spec;
pub(crate) mod status;
pub(crate) mod store;

/// All keepers.
pub(crate) struct CertificateManager {
    cert_store: CertStore,
    context: Option<Arc<AcmeContext>>,
    running: HashMap<CertificateSpec, JoinHandle<()>>,
}

impl CertificateManager {
    pub(crate) fn new(cert_store: CertStore) -> Self {
        Self { cert_store, context: None, running: HashMap::new() }
    }

    /// Keeps the certificates that a configuration wants ordered, and no others. Fails, changing
    /// nothing, if the state cannot be opened.
    pub(crate) fn apply(&mut self, config: &Config) -> Result<()> {
        let specs: Vec<CertificateSpec> = config
            .terminates
            .iter()
            .filter_map(|one| CertificateSpec::from_terminate(one))
            .collect();
        let context = match &config.acme {
            Some(acme) if !specs.is_empty() => Some(self.open_context(acme, &config.nameservers)?),
            Some(_) | None => None,
        };
        let is_same = match (&context, &self.context) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        self.running.retain(|spec, task| {
            let stays = is_same && specs.contains(spec);
            if !stays {
                task.abort();
            }
            stays
        });
        if let Some(open) = &context {
            for spec in specs {
                if let Entry::Vacant(free) = self.running.entry(spec) {
                    let task = CertificateTask::open(Arc::clone(open), free.key().clone())?;
                    free.insert(tokio::spawn(task.run()));
                }
            }
        }
        self.context = context;
        Ok(())
    }

    /// The one that is open, if it is for the same.
    fn open_context(
        &self,
        acme: &AcmeConfig,
        nameservers: &[SocketAddr],
    ) -> Result<Arc<AcmeContext>> {
        let current = self.context.as_ref();
        if let Some(context) = current
            && context.config == *acme
            && context.nameservers == nameservers
        {
            return Ok(Arc::clone(context));
        }
        let cert_store = self.cert_store.clone();
        let context =
            AcmeContext::open(acme, nameservers, cert_store, current.map(|open| &**open))?;
        Ok(Arc::new(context))
    }
}
