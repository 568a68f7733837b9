//! One order (RFC 8555 §7.4), from the names to the certificate. An order that a previous agent
//! left pending is resumed.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
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
use super::error::{AcmeError, is_bad_nonce};
use super::spec::CertificateSpec;
use super::store::{self, CertificateDir};
use crate::certs::{CertStore, ChallengeGuard, challenge};
use crate::config::Challenge;

/// Waiting for the CA to validate, and then to issue: up to 180 s each.
const POLL_POLICY: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(180));

/// Content of `order.json`.
#[derive(Deserialize, Serialize)]
struct PendingOrder {
    url: String,
    names: Vec<String>,
    /// Private key of the certificate, PEM.
    key: String,
}

/// What an order needs besides its certificate spec.
pub(super) struct OrderContext<'d> {
    pub(super) account: &'d Account,
    pub(super) dir: &'d CertificateDir,
    pub(super) cert_store: &'d CertStore,
    pub(super) dns_solver: Option<&'d Dns01Solver<'d>>,
    pub(super) profile: Option<&'d str>,
    /// The certificate that this one replaces (RFC 9773 §5).
    pub(super) replaces: Option<CertificateIdentifier<'d>>,
}

/// Answers to challenges, kept until the CA has validated them.
#[derive(Default)]
struct ActiveChallenges {
    guards: Vec<ChallengeGuard>,
    txt_records: Vec<TxtRecord>,
}

/// Obtains a certificate. Returns private key and chain in PEM, in this order.
///
/// The key is stored before the CA sees its request, so that a crash never leaves a certificate
/// without its key.
///
/// # Errors
///
/// The CA rejects the order or a validation, or a challenge cannot be answered.
pub(super) async fn obtain(
    context: &OrderContext<'_>,
    spec: &CertificateSpec,
) -> Result<String, AcmeError> {
    let (mut order, pending) = context.resume_or_create(spec).await?;
    if order.state().status == OrderStatus::Pending {
        let mut active = ActiveChallenges::default();
        let authorized = context.complete_authorizations(&mut order, spec, &mut active).await;
        if let Some(solver) = context.dns_solver {
            for record in &active.txt_records {
                if let Err(error) = solver.clean_up(record).await {
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
    /// Loads the stored order if it is for the same names and not invalid, or creates one.
    async fn resume_or_create(
        &self,
        spec: &CertificateSpec,
    ) -> Result<(Order, PendingOrder), AcmeError> {
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
            // The CA may reject `replaces` alone, for example with alreadyReplaced (RFC 9773 §7.4).
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

    /// Presents all answers, marks the challenges as ready, and waits for the CA to validate them.
    async fn complete_authorizations(
        &self,
        order: &mut Order,
        spec: &CertificateSpec,
        active: &mut ActiveChallenges,
    ) -> Result<(), AcmeError> {
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
                let identifier = challenge.identifier();
                return Err(anyhow!("the CA validates {identifier}, which was not ordered").into());
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
            for record in &active.txt_records {
                solver.wait_propagated(record).await?;
            }
        }
        set_challenges_ready(order, &kind).await?;
        match order.poll_ready(&POLL_POLICY).await {
            Ok(OrderStatus::Ready) => Ok(()),
            // The request for the state failed, not the order.
            Err(error) if order.state().error.is_none() => Err(error.into()),
            Ok(_) | Err(_) => Err(AcmeError::OrderInvalid(self.failure_details(order).await)),
        }
    }

    async fn present_challenge(
        &self,
        challenge: Challenge,
        name: &str,
        token: &str,
        key_authorization: &KeyAuthorization,
        active: &mut ActiveChallenges,
    ) -> anyhow::Result<()> {
        let host = || ServerName::parse(name.as_bytes()).map_err(anyhow::Error::msg);
        match challenge {
            Challenge::TlsAlpn01 => {
                let server =
                    challenge::tls_alpn01_config(&host()?, key_authorization.digest().as_ref())?;
                active.guards.push(self.cert_store.add_tls_challenge(&host()?, server));
            }
            Challenge::Http01 => {
                let guard =
                    self.cert_store.add_http_challenge(&host()?, token, key_authorization.as_str());
                active.guards.push(guard);
            }
            Challenge::Dns01 => {
                let solver = self.dns_solver.context("dns-01 without [acme.dns]")?;
                let value = BASE64URL_NOPAD.encode(key_authorization.digest().as_ref());
                active.txt_records.push(solver.present(name, value).await?);
            }
        }
        Ok(())
    }

    /// Collects the errors of an invalid order, and removes its `order.json`.
    async fn failure_details(&self, order: &mut Order) -> String {
        let mut reasons = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let Ok(state) = authorization.refresh().await else { continue };
            let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            reasons.extend(errors.map(|error| format!("{}: {error}", state.identifier())));
        }
        let _unremovable = store::remove_if_exists(&self.dir.order_path());
        match reasons.as_slice() {
            [] => "the order is invalid, and the CA gives no reason".into(),
            reasons => reasons.join("; "),
        }
    }
}

/// Marks the challenges as ready, so that the CA validates them (RFC 8555 §7.5.1).
async fn set_challenges_ready(order: &mut Order, kind: &ChallengeType) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        // A challenge of a resumed order may be in the state `processing` already (RFC 8555 §7.1.6).
        if authorization.status == AuthorizationStatus::Pending
            && let Some(mut challenge) = authorization.challenge(kind.clone())
            && challenge.status == ChallengeStatus::Pending
        {
            challenge.set_ready().await?;
        }
    }
    Ok(())
}
