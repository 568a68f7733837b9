//! Certificates of our own: a keeper for each, an account for all.
//!
//! Nothing here waits for the CA before the agent serves: passthrough works from the first second,
//! and certificates come when they can.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use instant_acme::Account;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::certs::CertStore;
use crate::config::terminate::{CertificateSource, Challenge};
use crate::config::{AcmeConfig, Config, Terminate};
use certificate_task::CertificateTask;
use http_client::RetryAfter;
use store::StateStore;

mod account;
mod certificate_task;
mod dns01;
mod http_client;
mod order;
pub(crate) mod status;
pub(crate) mod store;

/// All keepers.
pub(crate) struct CertificateManager {
    cert_store: CertStore,
    context: Option<Arc<AcmeContext>>,
    running: HashMap<CertificateSpec, JoinHandle<()>>,
}

/// A certificate that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CertificateSpec {
    label: String,
    names: Vec<String>,
    challenge: Challenge,
}

/// What all orders share.
struct AcmeContext {
    config: AcmeConfig,
    /// Name servers of the configuration.
    nameservers: Vec<SocketAddr>,
    store: StateStore,
    cert_store: CertStore,
    retry_after: RetryAfter,
    account: Mutex<Option<Account>>,
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
        let previous_store = current.map(|office| &office.store);
        let store = StateStore::open(&acme.state_dir, &acme.directory, previous_store)?;
        Ok(Arc::new(AcmeContext {
            config: acme.clone(),
            nameservers: nameservers.to_vec(),
            store,
            cert_store: self.cert_store.clone(),
            retry_after: RetryAfter::default(),
            account: Mutex::new(None),
        }))
    }
}

impl CertificateSpec {
    fn from_terminate(terminate: &Terminate) -> Option<Self> {
        let CertificateSource::Acme(challenge) = terminate.certificate else { return None };
        Some(Self {
            label: terminate.route.label.clone(),
            names: terminate.route.names.iter().map(ToString::to_string).collect(),
            challenge,
        })
    }
}

impl AcmeContext {
    /// The account, opened by whoever needs it first.
    async fn account(&self) -> Result<Account> {
        let mut account = self.account.lock().await;
        if let Some(account) = &*account {
            return Ok(account.clone());
        }
        let opened = account::load_or_create(&self.config, &self.store, &self.retry_after).await?;
        Ok(account.insert(opened).clone())
    }

    /// The CA does not know the account any more.
    fn clear_account(&self) {
        if let Ok(mut account) = self.account.try_lock() {
            *account = None;
        }
    }
}
