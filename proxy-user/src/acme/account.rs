//! The account at the CA: its key is kept before the CA hears of it, so it is made only once.

use anyhow::{Context as _, Result};
use data_encoding::BASE64;
use instant_acme::{Account, AccountBuilder, ExternalAccountKey, Key, NewAccount};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::http_client::{AcmeHttpClient, RetryAfter};
use super::store::{self, StateStore};
use crate::config::AcmeConfig;

/// `account.json`
#[derive(Deserialize, Serialize)]
struct StoredAccount {
    /// PKCS #8, base64.
    key: String,
    /// The account's URL, once the CA has given one.
    id: Option<String>,
    /// The contacts that the CA knows.
    contact: Vec<String>,
}

impl StoredAccount {
    fn key(&self) -> Result<PrivatePkcs8KeyDer<'static>> {
        let der = BASE64.decode(self.key.as_bytes()).context("account.json: the key")?;
        Ok(PrivatePkcs8KeyDer::from(der))
    }
}

/// The account that is kept, or a new one.
///
/// Registering a key that the CA knows already gives the account that it has (RFC 8555 §7.3), so a
/// crash between the CA's answer and ours to it makes no second one. With external account binding
/// the library makes the key itself, and that instant stays.
pub(super) async fn load_or_create(
    acme: &AcmeConfig,
    store: &StateStore,
    retry_after: &RetryAfter,
) -> Result<Account> {
    let http = AcmeHttpClient::new(acme.ca_file.as_deref(), retry_after.clone())?;
    let builder = Account::builder_with_http(Box::new(http));
    let mut stored = match (store::read_json::<StoredAccount>(&store.account_path())?, &acme.eab) {
        (None | Some(StoredAccount { id: None, .. }), Some(eab)) => {
            return create_with_eab(builder, acme, store, eab).await;
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
    (kid, hmac): &(String, Vec<u8>),
) -> Result<Account> {
    let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let binding = ExternalAccountKey::new(kid.clone(), hmac);
    let created = builder.create(&new, acme.directory.clone(), Some(&binding)).await?;
    let (account, credentials) = created;
    let key = credentials.private_key().secret_pkcs8_der().to_vec();
    let id = Some(account.id().to_owned());
    let stored = StoredAccount { key: BASE64.encode(&key), id, contact: acme.contact.clone() };
    store::write_json(&store.account_path(), &stored)?;
    info!(id = account.id(), "ACME account created with external account binding");
    Ok(account)
}

/// Forgets the account's URL, for a CA that does not know it any more; the key stays.
pub(super) fn clear_account_url(store: &StateStore) -> Result<()> {
    if let Some(mut stored) = store::read_json::<StoredAccount>(&store.account_path())? {
        stored.id = None;
        store::write_json(&store.account_path(), &stored)?;
    }
    Ok(())
}
