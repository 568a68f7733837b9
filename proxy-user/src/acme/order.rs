//! One order, RFC 8555 §7.4: from the names to a certificate, going on where a former run stopped.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use data_encoding::BASE64URL_NOPAD;
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error,
    Identifier, KeyAuthorization, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde::{Deserialize, Serialize};
use snisplit_common::server_name::ServerName;
use tracing::{debug, info};

use super::dns01::{Dns01Solver, TxtRecord};
use super::http_client::is_bad_nonce;
use super::spec::CertificateSpec;
use super::store::{self, CertificateDir};
use crate::certs::{CertStore, ChallengeGuard, challenge};
use crate::config::terminate::Challenge;

/// How long the CA may take to validate, and to sign.
const POLL_POLICY: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(180));

/// `order.json`
#[derive(Deserialize, Serialize)]
struct PendingOrder {
    url: String,
    names: Vec<String>,
    /// The key that the certificate will be for, PEM.
    key: String,
}

/// What an order needs besides its names.
pub(super) struct OrderContext<'d> {
    pub(super) account: &'d Account,
    pub(super) dir: &'d CertificateDir,
    pub(super) cert_store: &'d CertStore,
    pub(super) dns_solver: Option<&'d Dns01Solver<'d>>,
    pub(super) profile: Option<&'d str>,
    /// The certificate that this one is to replace, RFC 9773 §5.
    pub(super) replaces: Option<CertificateIdentifier<'d>>,
}

/// Answers that stand ready while the CA looks.
#[derive(Default)]
struct ActiveChallenges {
    guards: Vec<ChallengeGuard>,
    txt_records: Vec<TxtRecord>,
}

/// Key and chain, PEM, in this order. The key was on disk before the CA knew of it.
pub(super) async fn obtain(context: &OrderContext<'_>, spec: &CertificateSpec) -> Result<String> {
    let (mut order, pending) = context.resume_or_create(spec).await?;
    if order.state().status == OrderStatus::Pending {
        let mut active = ActiveChallenges::default();
        let authorized = context.complete_authorizations(&mut order, spec, &mut active).await;
        if let Some(solver) = context.dns_solver {
            for written in &active.txt_records {
                if let Err(error) = solver.clean_up(written).await {
                    info!("{error:#}; remove it by hand");
                }
            }
        }
        authorized?;
    }
    let key = KeyPair::from_pem(&pending.key)?;
    if order.state().status == OrderStatus::Ready {
        let mut params = CertificateParams::new(spec.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    }
    let chain = order.poll_certificate(&POLL_POLICY).await?;
    Ok(pending.key + &chain)
}

impl OrderContext<'_> {
    /// The order that a former run left, if it is for the same names and still good, or a new one.
    async fn resume_or_create(&self, spec: &CertificateSpec) -> Result<(Order, PendingOrder)> {
        let path = self.dir.order_path();
        if let Some(pending) = store::read_json::<PendingOrder>(&path)?
            && pending.names == spec.names
        {
            match self.account.order(pending.url.clone()).await {
                Ok(mut order) => {
                    if order.state().status != OrderStatus::Invalid {
                        info!(name = %spec.label, "order resumed");
                        return Ok((order, pending));
                    }
                }
                Err(error) if is_bad_nonce(&error) => return Err(error.into()),
                Err(Error::Api(problem)) => {
                    debug!(name = %spec.label, %problem, "stored order is unknown to the CA")
                }
                Err(error) => return Err(error.into()),
            }
        }
        let identifiers: Vec<_> = spec.names.iter().cloned().map(Identifier::Dns).collect();
        let new = || match self.profile {
            Some(profile) => NewOrder::new(&identifiers).profile(profile),
            None => NewOrder::new(&identifiers),
        };
        let order = match &self.replaces {
            None => self.account.new_order(&new()).await?,
            // "replaced already" and the like: the order itself may still be good.
            Some(replaced) => match self.account.new_order(&new().replaces(replaced.clone())).await
            {
                Ok(order) => order,
                Err(error) if is_bad_nonce(&error) => return Err(error.into()),
                Err(error) => {
                    debug!(name = %spec.label, %error, "ordered without `replaces`");
                    self.account.new_order(&new()).await?
                }
            },
        };
        let key = KeyPair::generate()?.serialize_pem();
        let pending = PendingOrder { url: order.url().to_owned(), names: spec.names.clone(), key };
        store::write_json(&path, &pending)?;
        Ok((order, pending))
    }

    /// Puts up all answers, then asks the CA to look, then waits for what it finds.
    async fn complete_authorizations(
        &self,
        order: &mut Order,
        spec: &CertificateSpec,
        active: &mut ActiveChallenges,
    ) -> Result<()> {
        let kind = match spec.challenge {
            Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Challenge::Http01 => ChallengeType::Http01,
            Challenge::Dns01 => ChallengeType::Dns01,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let challenge = authorization.challenge(kind.clone());
            let challenge = challenge.with_context(|| format!("the CA offers no {kind:?}"))?;
            let Identifier::Dns(name) = challenge.identifier().identifier else {
                bail!("the CA asks for {}, which was not ordered", challenge.identifier());
            };
            let key_authorization = challenge.key_authorization();
            self.present_challenge(
                spec.challenge,
                name,
                &challenge.token,
                &key_authorization,
                active,
            )
            .await?;
        }
        if let Some(solver) = self.dns_solver {
            for written in &active.txt_records {
                solver.wait_propagated(written).await?;
            }
        }
        set_challenges_ready(order, &kind).await?;
        match order.poll_ready(&POLL_POLICY).await {
            Ok(OrderStatus::Ready) => Ok(()),
            // Not of the order: of the question for it.
            Err(error) if order.state().error.is_none() => Err(error.into()),
            Ok(_) | Err(_) => bail!(self.failure_details(order).await),
        }
    }

    async fn present_challenge(
        &self,
        challenge: Challenge,
        name: &str,
        token: &str,
        key_authorization: &KeyAuthorization,
        active: &mut ActiveChallenges,
    ) -> Result<()> {
        let host = || ServerName::parse(name.as_bytes()).map_err(anyhow::Error::msg);
        match challenge {
            Challenge::TlsAlpn01 => {
                let server =
                    challenge::tls_alpn01_config(&host()?, key_authorization.digest().as_ref())?;
                active.guards.push(self.cert_store.add_tls_challenge(&host()?, server));
            }
            Challenge::Http01 => {
                let pending =
                    self.cert_store.add_http_challenge(&host()?, token, key_authorization.as_str());
                active.guards.push(pending);
            }
            Challenge::Dns01 => {
                let solver = self.dns_solver.context("dns-01 without [acme.dns]")?;
                let value = BASE64URL_NOPAD.encode(key_authorization.digest().as_ref());
                active.txt_records.push(solver.present(name, value).await?);
            }
        }
        Ok(())
    }

    /// What the CA says of an invalid order. It is over, so the next run begins anew.
    async fn failure_details(&self, order: &mut Order) -> String {
        let mut reasons = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let Ok(state) = authorization.refresh().await else { continue };
            let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            reasons.extend(errors.map(|error| format!("{}: {error}", state.identifier())));
        }
        let _gone_already = store::remove_if_exists(&self.dir.order_path());
        match reasons.as_slice() {
            [] => "the CA calls the order invalid and does not say why".into(),
            reasons => reasons.join("; "),
        }
    }
}

/// Tells the CA that the answers are there.
async fn set_challenges_ready(order: &mut Order, kind: &ChallengeType) -> Result<()> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        // One that a former run has told of may be under way (RFC 8555 §7.1.6).
        if authorization.status == AuthorizationStatus::Pending
            && let Some(mut challenge) = authorization.challenge(kind.clone())
            && challenge.status == ChallengeStatus::Pending
        {
            challenge.set_ready().await?;
        }
    }
    Ok(())
}
