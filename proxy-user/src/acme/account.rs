//! The account at the CA. The agent stores its key before it registers it, so that a crash in between
//! cannot leave a second account behind.

use anyhow::{Context as _, Result};
use data_encoding::BASE64;
use instant_acme::{Account, AccountBuilder, ExternalAccountKey, Key, NewAccount};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::error::AcmeError;
use super::http_client::{AcmeHttpClient, RetryAfter};
use super::store::{self, StateStore};
use crate::config::AcmeConfig;

/// Content of `account.json`.
#[derive(Deserialize, Serialize)]
struct StoredAccount {
    /// Private key, PKCS #8 in base64.
    key: String,
    /// URL of the account; `None` until the CA has confirmed it.
    id: Option<String>,
    /// Contacts that the CA knows.
    contact: Vec<String>,
}

impl StoredAccount {
    fn key(&self) -> Result<PrivatePkcs8KeyDer<'static>> {
        let der = BASE64.decode(self.key.as_bytes()).context("account.json: the key")?;
        Ok(PrivatePkcs8KeyDer::from(der))
    }
}

/// Loads the stored account, or creates one.
///
/// If the CA already knows the stored key, it returns the existing account (RFC 8555 §7.3). An account
/// with external account binding is the exception: instant-acme generates its key during the
/// registration, so a crash before the key is stored loses that account.
///
/// # Errors
///
/// The CA rejects the account or does not answer, or the state directory cannot be used.
pub(super) async fn load_or_create(
    acme: &AcmeConfig,
    store: &StateStore,
    retry_after: &RetryAfter,
) -> Result<Account, AcmeError> {
    let http = AcmeHttpClient::new(acme.ca_file.as_deref(), retry_after.clone())?;
    let builder = Account::builder_with_http(Box::new(http));
    let mut stored = match (store::read_json::<StoredAccount>(&store.account_path())?, &acme.eab) {
        (None | Some(StoredAccount { id: None, .. }), Some((kid, hmac))) => {
            let binding = ExternalAccountKey::new(kid.clone(), hmac);
            return create_with_eab(builder, acme, store, &binding).await;
        }
        (Some(stored), _) => stored,
        (None, None) => {
            let (_, key) = Key::generate_pkcs8()?;
            let key = BASE64.encode(key.secret_pkcs8_der());
            let stored = StoredAccount { key, id: None, contact: Vec::new() };
            store::write_json(&store.account_path(), &stored)?;
            stored
        }
    };
    let (key, directory) = (stored.key()?, acme.directory.clone());
    let account = match &stored.id {
        Some(id) => builder.from_parts(id.clone(), key, directory).await?,
        None => {
            let key = (Key::from_pkcs8_der(key.clone_key())?, PrivateKeyDer::Pkcs8(key));
            builder.create_from_key(key, directory).await?.0
        }
    };
    if stored.contact != acme.contact {
        let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
        account.update_contacts(&contact).await?;
    } else if stored.id.is_some() {
        return Ok(account);
    }
    stored.id = Some(account.id().to_owned());
    stored.contact.clone_from(&acme.contact);
    store::write_json(&store.account_path(), &stored)?;
    info!(id = account.id(), "ACME account ready");
    Ok(account)
}

async fn create_with_eab(
    builder: AccountBuilder,
    acme: &AcmeConfig,
    store: &StateStore,
    binding: &ExternalAccountKey,
) -> Result<Account, AcmeError> {
    let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let (account, credentials) =
        builder.create(&new, acme.directory.clone(), Some(binding)).await?;
    let key = credentials.private_key().secret_pkcs8_der().to_vec();
    let id = Some(account.id().to_owned());
    let stored = StoredAccount { key: BASE64.encode(&key), id, contact: acme.contact.clone() };
    store::write_json(&store.account_path(), &stored)?;
    info!(id = account.id(), "ACME account created with external account binding");
    Ok(account)
}

/// Removes the account's URL from the state directory, because the CA does not know it. The key stays.
///
/// # Errors
///
/// The state directory cannot be used.
pub(super) fn clear_account_url(store: &StateStore) -> Result<()> {
    if let Some(mut stored) = store::read_json::<StoredAccount>(&store.account_path())? {
        stored.id = None;
        store::write_json(&store.account_path(), &stored)?;
    }
    Ok(())
}
