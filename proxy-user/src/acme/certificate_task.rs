//! The task of one certificate: it orders, installs and renews it, and waits in between.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use instant_acme::{CertificateIdentifier, Error};
use rustls::pki_types::CertificateDer;
use snisplit_common::renewal::{FailureKind, OrderFailure, RenewalAction, RenewalInput};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::account;
use super::context::AcmeContext;
use super::dns01::Dns01Solver;
use super::error::{AcmeError, ORDER_TIMEOUT};
use super::order::{self, OrderContext};
use super::spec::CertificateSpec;
use super::status::{CertificateStatus, format_time};
use super::store::{self, CertificateDir};
use crate::certs::pem;

/// Time between two checks for a request to renew and for the due time.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two requests for renewal information (RFC 9773 §4.3.2).
const MIN_ARI_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time between two requests for renewal information, whatever `Retry-After` says.
const MAX_ARI_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// Immediate retries of an order when the CA rejects only a nonce.
const MAX_BAD_NONCE_RETRIES: usize = 8;

/// Task of one certificate.
pub(super) struct CertificateTask {
    context: Arc<AcmeContext>,
    spec: CertificateSpec,
    dir: CertificateDir,
    status: CertificateStatus,
    renewal: RenewalInput,
    /// The installed certificate, if it covers all names of `spec`.
    leaf: Option<CertificateDer<'static>>,
    /// Time of the next request for renewal information (ARI).
    next_ari_poll: SystemTime,
}

impl CertificateTask {
    /// Reads the stored status and installs the stored certificate.
    ///
    /// # Errors
    ///
    /// The state directory cannot be used.
    pub(super) fn open(context: Arc<AcmeContext>, spec: CertificateSpec) -> Result<Self> {
        let dir = context.store.certificate_dir(&spec.label)?;
        let status: CertificateStatus = store::read_json(&dir.status_path())?.unwrap_or_default();
        let renewal = RenewalInput {
            failure: status.failure.as_ref().map(|failure| failure.to_failure()),
            jitter: jitter(&spec),
            ..RenewalInput::default()
        };
        let next_ari_poll = SystemTime::UNIX_EPOCH;
        let mut task = Self { context, spec, dir, status, renewal, leaf: None, next_ari_poll };
        task.install_stored()?;
        Ok(task)
    }

    /// Installs the stored certificate. One that lacks a name of `spec` is served too, but renewed at
    /// once.
    fn install_stored(&mut self) -> Result<()> {
        let path = self.dir.certificate_path();
        let parsed = store::read_or_rename_corrupt(&path, |pem| pem::parse_pair(pem, pem))?;
        let Some((pair, info)) = parsed else { return Ok(()) };
        let has_all_names = self.spec.names.iter().all(|name| info.names.contains(name));
        if has_all_names {
            self.renewal.validity = Some((info.not_before, info.not_after));
            self.leaf = Some(pair.cert[0].clone());
        }
        self.context.cert_store.install(&self.spec.label, pair, info);
        Ok(())
    }

    /// Orders whenever the certificate is due, until the future is dropped.
    pub(super) async fn run(mut self) {
        loop {
            self.refresh_renewal_info().await;
            let now = SystemTime::now();
            let is_requested = self.dir.take_renewal_request();
            match self.renewal.action(now) {
                RenewalAction::Wait(due) if !is_requested => {
                    self.write_status(due);
                    sleep(POLL_INTERVAL.min(due.duration_since(now).unwrap_or_default())).await;
                }
                RenewalAction::Wait(_) | RenewalAction::Order => self.order_certificate().await,
            }
        }
    }

    /// Asks the CA for the suggested renewal window (RFC 9773) when the next request is due. Without
    /// one, the lifetime of the certificate decides.
    async fn refresh_renewal_info(&mut self) {
        let now = SystemTime::now();
        let Some(leaf) = self.leaf.as_ref().filter(|_| self.next_ari_poll <= now) else { return };
        self.next_ari_poll = now + MAX_ARI_INTERVAL;
        let Ok(id) = CertificateIdentifier::try_from(leaf) else { return };
        let Ok(account) = self.context.account().await else {
            self.next_ari_poll = now + MIN_ARI_INTERVAL;
            return;
        };
        match account.renewal_info(&id).await {
            Ok((info, retry_after)) => {
                let window = info.suggested_window;
                self.renewal.suggested_window = Some((window.start.into(), window.end.into()));
                self.next_ari_poll = now + retry_after.clamp(MIN_ARI_INTERVAL, MAX_ARI_INTERVAL);
            }
            Err(Error::Unsupported(_)) => {}
            Err(_) => self.next_ari_poll = now + MIN_ARI_INTERVAL,
        }
    }

    async fn order_certificate(&mut self) {
        info!(name = %self.spec.label, names = ?self.spec.names, "ordering a certificate");
        let result = timeout(ORDER_TIMEOUT, self.order_with_nonce_retry()).await;
        match result.unwrap_or(Err(AcmeError::OrderTimeout)) {
            Ok(()) => {
                self.renewal.failure = None;
                self.renewal.suggested_window = None;
                self.next_ari_poll = SystemTime::UNIX_EPOCH;
                self.status.last_error = None;
                let not_after = self.renewal.validity.map(|(_, not_after)| format_time(not_after));
                info!(name = %self.spec.label, not_after, "certificate installed");
            }
            Err(error) => self.record_failure(error),
        }
        self.write_status(self.renewal.due_at());
    }

    async fn order_with_nonce_retry(&mut self) -> Result<(), AcmeError> {
        for _ in 0..MAX_BAD_NONCE_RETRIES {
            match self.order_once().await {
                Err(error) if error.is_bad_nonce() => {
                    debug!(name = %self.spec.label, "retrying after a bad nonce: {error}");
                }
                result => return result,
            }
        }
        self.order_once().await
    }

    async fn order_once(&mut self) -> Result<(), AcmeError> {
        let AcmeContext { config: acme, cert_store, nameservers, .. } = &*self.context;
        let account = self.context.account().await?;
        let dns_solver =
            acme.dns.as_ref().map(|dns| Dns01Solver::new(dns, nameservers)).transpose()?;
        let old_leaf = self.leaf.clone();
        // A CA without renewal information would reject the field `replaces`.
        let has_ari_window = self.renewal.suggested_window.is_some();
        let replaces = old_leaf.as_ref().filter(|_| has_ari_window);
        let order_context = OrderContext {
            account: &account,
            dir: &self.dir,
            cert_store,
            dns_solver: dns_solver.as_ref(),
            profile: acme.profile.as_deref(),
            replaces: replaces.and_then(|leaf| CertificateIdentifier::try_from(leaf).ok()),
        };
        let pem = order::obtain(&order_context, &self.spec).await?;
        let path = self.dir.certificate_path();
        let context = || format!("cannot write {}", path.display());
        store::write_atomic(&path, pem.as_bytes()).with_context(context)?;
        store::remove_if_exists(&self.dir.order_path()).context("cannot remove order.json")?;
        Ok(self.install_stored()?)
    }

    fn record_failure(&mut self, error: AcmeError) {
        if error.is_unknown_account() {
            self.context.clear_account();
            let _unwritable = account::clear_account_url(&self.context.store);
        }
        let kind = error.kind();
        let previous = self.renewal.failure.filter(|previous| previous.kind == kind);
        let failure = OrderFailure {
            count: previous.map_or(1, |previous| previous.count + 1),
            failed_at: SystemTime::now(),
            kind,
            retry_after: self.context.retry_after.consume(),
        };
        self.renewal.failure = Some(failure);
        let next_attempt = format_time(self.renewal.due_at());
        let error = format!("{:#}", anyhow::Error::new(error));
        let name = &self.spec.label;
        match (kind, failure.count) {
            // A CA that stays unreachable is worth one warning.
            (FailureKind::Unreachable, 2..) => {
                info!(%name, next_attempt, "certificate order failed: {error}")
            }
            (FailureKind::Unreachable | FailureKind::Rejected, _) => {
                warn!(%name, next_attempt, "certificate order failed: {error}");
            }
        }
        self.status.last_error = Some(error);
    }

    /// Writes `status.json` if it changes.
    fn write_status(&mut self, due: SystemTime) {
        let status =
            CertificateStatus::new(&self.spec, due, &self.renewal, self.status.last_error.clone());
        if status != self.status {
            if let Err(error) = store::write_json(&self.dir.status_path(), &status) {
                warn!(name = %self.spec.label, "{error:#}");
            }
            self.status = status;
        }
    }
}

/// Returns a number from 0 to 1 that depends on the host and the names only.
fn jitter(spec: &CertificateSpec) -> f64 {
    let mut hasher = DefaultHasher::new();
    (rustix::system::uname().nodename(), &spec.names).hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}
