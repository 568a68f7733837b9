//! Keeps one certificate: orders it, serves it, renews it, and waits in between.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use instant_acme::{CertificateIdentifier, Error};
use rustls::pki_types::CertificateDer;
use snisplit_common::renewal::{FailureKind, OrderFailure, RenewalAction, RenewalInput};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::dns::Records;
use super::http::is_of_nonce;
use super::order::{self, Desk};
use super::status::Status;
use super::store::{self, Folder};
use super::{Office, Wish, account};
use crate::certs::files;

/// How often a wish to renew is looked for, and the clock.
const TICK: Duration = Duration::from_secs(1);
/// How often the CA is asked for its wish, whatever it says (RFC 9773 §4.3.2).
const ASK: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 60 * 60));
/// How often an order is gone on with at once when the CA minds nothing but a nonce.
const NONCES: usize = 8;
/// How long an order may take altogether.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The keeper of one certificate.
pub(super) struct Keeper {
    office: Arc<Office>,
    wish: Wish,
    folder: Folder,
    status: Status,
    situation: RenewalInput,
    leaf: Option<CertificateDer<'static>>,
    /// When the CA is asked for its wish again.
    ask_at: SystemTime,
}

impl Keeper {
    /// Serves what is there already.
    pub(super) fn open(office: Arc<Office>, wish: Wish) -> Result<Self> {
        let folder = office.store.folder(&wish.label)?;
        let status: Status = store::read_json(&folder.status())?.unwrap_or_default();
        let situation = RenewalInput {
            failure: status.failure.as_ref().map(|failure| failure.failure()),
            jitter: jitter(&wish),
            ..RenewalInput::default()
        };
        let ask_at = SystemTime::UNIX_EPOCH;
        let mut keeper = Self { office, wish, folder, status, situation, leaf: None, ask_at };
        keeper.serve()?;
        Ok(keeper)
    }

    /// Serves the certificate on disk, if it is one for these names.
    fn serve(&mut self) -> Result<()> {
        let path = self.folder.certificate();
        let Some((pair, facts)) = store::read(&path, |pem| files::pair(pem, pem))? else {
            return Ok(());
        };
        let is_whole = self.wish.names.iter().all(|name| facts.names.contains(name));
        if is_whole {
            self.situation.validity = Some((facts.not_before, facts.not_after));
            self.leaf = Some(pair.cert[0].clone());
        }
        self.office.keyring.install(&self.wish.label, pair, facts);
        Ok(())
    }

    /// Until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            self.ask_the_ca().await;
            let now = SystemTime::now();
            let is_asked_for = self.folder.take_renewal();
            match self.situation.action(now) {
                RenewalAction::Wait(due) if !is_asked_for => {
                    self.note(due);
                    sleep(TICK.min(due.duration_since(now).unwrap_or_default())).await;
                }
                RenewalAction::Wait(_) | RenewalAction::Order => self.order().await,
            }
        }
    }

    /// The CA's suggested window; one that offers none goes by the lifetime.
    async fn ask_the_ca(&mut self) {
        let now = SystemTime::now();
        let Some(leaf) = self.leaf.as_ref().filter(|_| self.ask_at <= now) else { return };
        self.ask_at = now + ASK.1;
        let Ok(id) = CertificateIdentifier::try_from(leaf) else { return };
        let Ok(account) = self.office.account().await else {
            self.ask_at = now + ASK.0;
            return;
        };
        match account.renewal_info(&id).await {
            Ok((info, again)) => {
                let window = info.suggested_window;
                self.situation.suggested_window = Some((window.start.into(), window.end.into()));
                self.ask_at = now + again.clamp(ASK.0, ASK.1);
            }
            Err(Error::Unsupported(_)) => {}
            Err(_) => self.ask_at = now + ASK.0,
        }
    }

    async fn order(&mut self) {
        info!(name = %self.wish.label, names = ?self.wish.names, "ordering a certificate");
        let ordered = timeout(PATIENCE, self.order_in_spite_of_nonces()).await;
        match ordered.unwrap_or_else(|late| Err(late.into())) {
            Ok(()) => {
                self.situation.failure = None;
                self.situation.suggested_window = None;
                self.ask_at = SystemTime::UNIX_EPOCH;
                self.status.last_error = None;
                let until = self.situation.validity.map(|(_, until)| super::status::date(until));
                info!(name = %self.wish.label, not_after = until, "certificate in use");
            }
            Err(error) => self.fail(&error),
        }
        self.note(self.situation.due_at());
    }

    async fn order_in_spite_of_nonces(&mut self) -> Result<()> {
        for _ in 0..NONCES {
            match self.try_order().await {
                Err(error) if error.downcast_ref().is_some_and(is_of_nonce) => {
                    debug!(name = %self.wish.label, "going on: {error:#}");
                }
                done => return done,
            }
        }
        self.try_order().await
    }

    async fn try_order(&mut self) -> Result<()> {
        let Office { acme, keyring, servers, .. } = &*self.office;
        let account = self.office.account().await?;
        let records = acme.dns.as_ref().map(|dns| Records::new(dns, servers)).transpose()?;
        let old = self.leaf.clone();
        let has_wish = self.situation.suggested_window.is_some();
        let replaces = old.as_ref().filter(|_| has_wish);
        let desk = Desk {
            account: &account,
            folder: &self.folder,
            keyring,
            records: records.as_ref(),
            profile: acme.profile.as_deref(),
            replaces: replaces.and_then(|leaf| CertificateIdentifier::try_from(leaf).ok()),
        };
        let pem = order::run(&desk, &self.wish).await?;
        store::write(&self.folder.certificate(), pem.as_bytes())?;
        store::remove(&self.folder.order())?;
        self.serve()
    }

    fn fail(&mut self, error: &anyhow::Error) {
        let problem = error.downcast_ref::<Error>();
        if let Some(Error::Api(problem)) = problem
            && problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
        {
            self.office.forget();
            let _unwritable = account::forget(&self.office.store);
        }
        let kind = match problem {
            Some(Error::Other(_) | Error::Timeout(_)) => FailureKind::Unreachable,
            Some(error) if is_of_nonce(error) => FailureKind::Unreachable,
            Some(_) | None => FailureKind::Rejected,
        };
        let before = self.situation.failure.filter(|before| before.kind == kind);
        let failure = OrderFailure {
            count: before.map_or(1, |before| before.count + 1),
            failed_at: SystemTime::now(),
            kind,
            retry_after: self.office.retry_after.take(),
        };
        self.situation.failure = Some(failure);
        let again = super::status::date(self.situation.due_at());
        self.status.last_error = Some(format!("{error:#}"));
        let name = &self.wish.label;
        match (kind, failure.count) {
            (FailureKind::Unreachable, 2..) => info!(%name, again, "no certificate: {error:#}"),
            (FailureKind::Unreachable | FailureKind::Rejected, _) => {
                warn!(%name, again, "no certificate: {error:#}");
            }
        }
    }

    /// Tells `snisplit certs`, and whoever keeps this certificate next.
    fn note(&mut self, due: SystemTime) {
        let told = Status::new(&self.wish, due, &self.situation, self.status.last_error.clone());
        if told != self.status {
            if let Err(error) = store::write_json(&self.folder.status(), &told) {
                warn!(name = %self.wish.label, "{error:#}");
            }
            self.status = told;
        }
    }
}

/// From 0 to 1, the same each time.
fn jitter(wish: &Wish) -> f64 {
    let mut hasher = DefaultHasher::new();
    (rustix::system::uname().nodename(), &wish.names).hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}
