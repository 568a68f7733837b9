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

use crate::certs::Keyring;
use crate::config::terminate::{Certificate, Challenge};
use crate::config::{Acme, Config, Terminate};
use http::RetryAfter;
use keeper::Keeper;
use store::Store;

mod account;
mod dns;
mod http;
mod keeper;
mod order;
pub(crate) mod status;
pub(crate) mod store;

/// All keepers.
pub(crate) struct Keepers {
    keyring: Keyring,
    office: Option<Arc<Office>>,
    running: HashMap<Wish, JoinHandle<()>>,
}

/// A certificate that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Wish {
    label: String,
    names: Vec<String>,
    challenge: Challenge,
}

/// What all orders share.
struct Office {
    acme: Acme,
    /// Name servers of the configuration.
    servers: Vec<SocketAddr>,
    store: Store,
    keyring: Keyring,
    retry_after: RetryAfter,
    account: Mutex<Option<Account>>,
}

impl Keepers {
    pub(crate) fn new(keyring: Keyring) -> Self {
        Self { keyring, office: None, running: HashMap::new() }
    }

    /// Keeps the certificates that a configuration wants ordered, and no others. Fails, changing
    /// nothing, if the state cannot be opened.
    pub(crate) fn apply(&mut self, config: &Config) -> Result<()> {
        let wishes: Vec<Wish> = config.terminates.iter().filter_map(|one| Wish::of(one)).collect();
        let office = match &config.acme {
            Some(acme) if !wishes.is_empty() => Some(self.office(acme, &config.nameservers)?),
            Some(_) | None => None,
        };
        let is_same = match (&office, &self.office) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        self.running.retain(|wish, task| {
            let stays = is_same && wishes.contains(wish);
            if !stays {
                task.abort();
            }
            stays
        });
        if let Some(office) = &office {
            for wish in wishes {
                if let Entry::Vacant(free) = self.running.entry(wish) {
                    let keeper = Keeper::open(Arc::clone(office), free.key().clone())?;
                    free.insert(tokio::spawn(keeper.run()));
                }
            }
        }
        self.office = office;
        Ok(())
    }

    /// The one that is open, if it is for the same.
    fn office(&self, acme: &Acme, servers: &[SocketAddr]) -> Result<Arc<Office>> {
        let open = self.office.as_ref();
        if let Some(office) = open
            && office.acme == *acme
            && office.servers == servers
        {
            return Ok(Arc::clone(office));
        }
        let before = open.map(|office| &office.store);
        let store = Store::open(&acme.state_dir, &acme.directory, before)?;
        Ok(Arc::new(Office {
            acme: acme.clone(),
            servers: servers.to_vec(),
            store,
            keyring: self.keyring.clone(),
            retry_after: RetryAfter::default(),
            account: Mutex::new(None),
        }))
    }
}

impl Wish {
    fn of(one: &Terminate) -> Option<Self> {
        let Certificate::Ordered(challenge) = one.certificate else { return None };
        Some(Self {
            label: one.route.label.clone(),
            names: one.route.names.iter().map(ToString::to_string).collect(),
            challenge,
        })
    }
}

impl Office {
    /// The account, opened by whoever needs it first.
    async fn account(&self) -> Result<Account> {
        let mut account = self.account.lock().await;
        if let Some(account) = &*account {
            return Ok(account.clone());
        }
        let opened = account::open(&self.acme, &self.store, &self.retry_after).await?;
        Ok(account.insert(opened).clone())
    }

    /// The CA does not know the account any more.
    fn forget(&self) {
        if let Ok(mut account) = self.account.try_lock() {
            *account = None;
        }
    }
}
