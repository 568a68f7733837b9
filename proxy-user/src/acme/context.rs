//! What all certificate tasks of one CA share.

use std::net::SocketAddr;

use anyhow::Result;
use instant_acme::Account;
use tokio::sync::Mutex;

use super::account;
use super::http_client::RetryAfter;
use super::store::StateStore;
use crate::certs::CertStore;
use crate::config::AcmeConfig;

/// What all orders share.
pub(super) struct AcmeContext {
    pub(super) config: AcmeConfig,
    /// Name servers of the configuration.
    pub(super) nameservers: Vec<SocketAddr>,
    pub(super) store: StateStore,
    pub(super) cert_store: CertStore,
    pub(super) retry_after: RetryAfter,
    account: Mutex<Option<Account>>,
}

impl AcmeContext {
    /// Opens the state directory. The lock of `previous` stays held if the directory is the same.
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

    /// The account, opened by whoever needs it first.
    pub(super) async fn account(&self) -> Result<Account> {
        let mut account = self.account.lock().await;
        if let Some(account) = &*account {
            return Ok(account.clone());
        }
        let opened = account::load_or_create(&self.config, &self.store, &self.retry_after).await?;
        Ok(account.insert(opened).clone())
    }

    /// The CA does not know the account any more.
    pub(super) fn clear_account(&self) {
        if let Ok(mut account) = self.account.try_lock() {
            *account = None;
        }
    }
}
