//! Account, state directory and configuration that all certificate tasks share.

use std::net::SocketAddr;

use anyhow::Result;
use instant_acme::Account;
use tokio::sync::Mutex;

use super::account;
use super::error::AcmeError;
use super::http_client::RetryAfter;
use super::store::StateStore;
use crate::certs::CertStore;
use crate::config::AcmeConfig;

/// Shared context of all certificate tasks.
pub(super) struct AcmeContext {
    pub(super) config: AcmeConfig,
    /// Name servers of the configuration; empty for those of /etc/resolv.conf.
    pub(super) nameservers: Vec<SocketAddr>,
    pub(super) store: StateStore,
    pub(super) cert_store: CertStore,
    pub(super) retry_after: RetryAfter,
    account: Mutex<Option<Account>>,
}

impl AcmeContext {
    /// Opens the state directory. The lock of `previous` stays held if the directory is the same.
    ///
    /// # Errors
    ///
    /// The state directory cannot be opened or locked.
    pub(super) fn open(
        config: &AcmeConfig,
        nameservers: &[SocketAddr],
        cert_store: CertStore,
        previous: Option<&Self>,
    ) -> Result<Self> {
        let previous_store = previous.map(|context| &context.store);
        Ok(Self {
            config: config.clone(),
            nameservers: nameservers.to_vec(),
            store: StateStore::open(&config.state_dir, &config.directory, previous_store)?,
            cert_store,
            retry_after: RetryAfter::default(),
            account: Mutex::new(None),
        })
    }

    /// Returns the account. The first call loads or creates it.
    ///
    /// # Errors
    ///
    /// The CA rejects the account or does not answer, or the state directory cannot be used.
    pub(super) async fn account(&self) -> Result<Account, AcmeError> {
        let mut account = self.account.lock().await;
        if let Some(account) = &*account {
            return Ok(account.clone());
        }
        let opened = account::load_or_create(&self.config, &self.store, &self.retry_after).await?;
        Ok(account.insert(opened).clone())
    }

    /// Makes the next call of [`Self::account`] load or create the account again.
    pub(super) fn clear_account(&self) {
        if let Ok(mut account) = self.account.try_lock() {
            *account = None;
        }
    }
}
