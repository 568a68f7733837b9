//! Certificates ordered by ACME (RFC 8555): one task for each certificate, one account for all.
//!
//! The agent serves passthrough connections from its start. Orders run in the background, and a
//! certificate is served as soon as the CA has issued it.

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
mod error;
mod http_client;
mod order;
mod spec;
pub(crate) mod status;
pub(crate) mod store;

/// The tasks of all ordered certificates.
pub(crate) struct CertificateManager {
    cert_store: CertStore,
    context: Option<Arc<AcmeContext>>,
    running: HashMap<CertificateSpec, JoinHandle<()>>,
}

impl CertificateManager {
    pub(crate) fn new(cert_store: CertStore) -> Self {
        Self { cert_store, context: None, running: HashMap::new() }
    }

    /// Starts a task for each `[[terminate]]` entry whose certificate is ordered, and stops all other tasks.
    ///
    /// # Errors
    ///
    /// The state directory cannot be opened. Running tasks are not changed then.
    pub(crate) fn apply(&mut self, config: &Config) -> Result<()> {
        let specs: Vec<CertificateSpec> = config
            .terminates
            .iter()
            .filter_map(|terminate| CertificateSpec::from_terminate(terminate))
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
            let is_kept = is_same && specs.contains(spec);
            if !is_kept {
                task.abort();
            }
            is_kept
        });
        if let Some(context) = &context {
            for spec in specs {
                if let Entry::Vacant(entry) = self.running.entry(spec) {
                    let task = CertificateTask::open(Arc::clone(context), entry.key().clone())?;
                    entry.insert(tokio::spawn(task.run()));
                }
            }
        }
        self.context = context;
        Ok(())
    }

    /// Returns the current context if its configuration is the same, or opens a new one.
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
