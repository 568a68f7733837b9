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

use super::account;
use super::context::AcmeContext;
use super::dns01::Dns01Solver;
use super::http_client::is_bad_nonce;
use super::order::{self, OrderContext};
use super::spec::CertificateSpec;
use super::status::{CertificateStatus, format_time};
use super::store::{self, CertificateDir};
use crate::certs::pem;

/// How often a wish to renew is looked for, and the clock.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often the CA is asked for its wish, whatever it says (RFC 9773 §4.3.2).
const ARI_POLL_BOUNDS: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(24 * 60 * 60));
/// How often an order is gone on with at once when the CA minds nothing but a nonce.
const MAX_BAD_NONCE_RETRIES: usize = 8;
/// How long an order may take altogether.
const ORDER_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The keeper of one certificate.
pub(super) struct CertificateTask {
    context: Arc<AcmeContext>,
    spec: CertificateSpec,
    dir: CertificateDir,
    status: CertificateStatus,
    renewal: RenewalInput,
    leaf: Option<CertificateDer<'static>>,
    /// When the CA is asked for its wish again.
    next_ari_poll: SystemTime,
}

impl CertificateTask {
    /// Serves what is there already.
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

    /// Serves the certificate on disk, if it is one for these names.
    fn install_stored(&mut self) -> Result<()> {
        let path = self.dir.certificate_path();
        let Some((pair, info)) = store::read_or_set_aside(&path, |pem| pem::parse_pair(pem, pem))?
        else {
            return Ok(());
        };
        let has_all_names = self.spec.names.iter().all(|name| info.names.contains(name));
        if has_all_names {
            self.renewal.validity = Some((info.not_before, info.not_after));
            self.leaf = Some(pair.cert[0].clone());
        }
        self.context.cert_store.install(&self.spec.label, pair, info);
        Ok(())
    }

    /// Until it is dropped.
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

    /// The CA's suggested window; one that offers none goes by the lifetime.
    async fn refresh_renewal_info(&mut self) {
        let now = SystemTime::now();
        let Some(leaf) = self.leaf.as_ref().filter(|_| self.next_ari_poll <= now) else { return };
        self.next_ari_poll = now + ARI_POLL_BOUNDS.1;
        let Ok(id) = CertificateIdentifier::try_from(leaf) else { return };
        let Ok(account) = self.context.account().await else {
            self.next_ari_poll = now + ARI_POLL_BOUNDS.0;
            return;
        };
        match account.renewal_info(&id).await {
            Ok((info, retry_after)) => {
                let window = info.suggested_window;
                self.renewal.suggested_window = Some((window.start.into(), window.end.into()));
                self.next_ari_poll = now + retry_after.clamp(ARI_POLL_BOUNDS.0, ARI_POLL_BOUNDS.1);
            }
            Err(Error::Unsupported(_)) => {}
            Err(_) => self.next_ari_poll = now + ARI_POLL_BOUNDS.0,
        }
    }

    async fn order_certificate(&mut self) {
        info!(name = %self.spec.label, names = ?self.spec.names, "ordering a certificate");
        let ordered = timeout(ORDER_TIMEOUT, self.order_with_nonce_retry()).await;
        match ordered.unwrap_or_else(|late| Err(late.into())) {
            Ok(()) => {
                self.renewal.failure = None;
                self.renewal.suggested_window = None;
                self.next_ari_poll = SystemTime::UNIX_EPOCH;
                self.status.last_error = None;
                let until = self.renewal.validity.map(|(_, until)| format_time(until));
                info!(name = %self.spec.label, not_after = until, "certificate installed");
            }
            Err(error) => self.record_failure(&error),
        }
        self.write_status(self.renewal.due_at());
    }

    async fn order_with_nonce_retry(&mut self) -> Result<()> {
        for _ in 0..MAX_BAD_NONCE_RETRIES {
            match self.order_once().await {
                Err(error) if error.downcast_ref().is_some_and(is_bad_nonce) => {
                    debug!(name = %self.spec.label, "retrying after a bad nonce: {error:#}");
                }
                done => return done,
            }
        }
        self.order_once().await
    }

    async fn order_once(&mut self) -> Result<()> {
        let AcmeContext { config: acme, cert_store, nameservers, .. } = &*self.context;
        let account = self.context.account().await?;
        let dns_solver =
            acme.dns.as_ref().map(|dns| Dns01Solver::new(dns, nameservers)).transpose()?;
        let old = self.leaf.clone();
        let has_ari_window = self.renewal.suggested_window.is_some();
        let replaces = old.as_ref().filter(|_| has_ari_window);
        let order_context = OrderContext {
            account: &account,
            dir: &self.dir,
            cert_store,
            dns_solver: dns_solver.as_ref(),
            profile: acme.profile.as_deref(),
            replaces: replaces.and_then(|leaf| CertificateIdentifier::try_from(leaf).ok()),
        };
        let pem = order::obtain(&order_context, &self.spec).await?;
        store::write_atomic(&self.dir.certificate_path(), pem.as_bytes())?;
        store::remove_if_exists(&self.dir.order_path())?;
        self.install_stored()
    }

    fn record_failure(&mut self, error: &anyhow::Error) {
        let problem = error.downcast_ref::<Error>();
        if let Some(Error::Api(problem)) = problem
            && problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
        {
            self.context.clear_account();
            let _unwritable = account::clear_account_url(&self.context.store);
        }
        let kind = match problem {
            Some(Error::Other(_) | Error::Timeout(_)) => FailureKind::Unreachable,
            Some(error) if is_bad_nonce(error) => FailureKind::Unreachable,
            Some(_) | None => FailureKind::Rejected,
        };
        let previous = self.renewal.failure.filter(|before| before.kind == kind);
        let failure = OrderFailure {
            count: previous.map_or(1, |before| before.count + 1),
            failed_at: SystemTime::now(),
            kind,
            retry_after: self.context.retry_after.take(),
        };
        self.renewal.failure = Some(failure);
        let next_attempt = format_time(self.renewal.due_at());
        self.status.last_error = Some(format!("{error:#}"));
        let name = &self.spec.label;
        match (kind, failure.count) {
            (FailureKind::Unreachable, 2..) => {
                info!(%name, next_attempt, "certificate order failed: {error:#}")
            }
            (FailureKind::Unreachable | FailureKind::Rejected, _) => {
                warn!(%name, next_attempt, "certificate order failed: {error:#}");
            }
        }
    }

    /// Tells `snisplit certs`, and whoever keeps this certificate next.
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

/// From 0 to 1, the same each time.
fn jitter(spec: &CertificateSpec) -> f64 {
    let mut hasher = DefaultHasher::new();
    (rustix::system::uname().nodename(), &spec.names).hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}
