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

use super::Wish;
use super::dns::{Records, Written};
use super::http::is_of_nonce;
use super::store::{self, Folder};
use crate::certs::{Keyring, Pending, challenge};
use crate::config::terminate::Challenge;

/// How long the CA may take to validate, and to sign.
const POLLS: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(180));

/// `order.json`
#[derive(Deserialize, Serialize)]
struct UnderWay {
    url: String,
    names: Vec<String>,
    /// The key that the certificate will be for, PEM.
    key: String,
}

/// What an order needs besides its names.
pub(super) struct Desk<'d> {
    pub(super) account: &'d Account,
    pub(super) folder: &'d Folder,
    pub(super) keyring: &'d Keyring,
    pub(super) records: Option<&'d Records<'d>>,
    pub(super) profile: Option<&'d str>,
    /// The certificate that this one is to replace, RFC 9773 §5.
    pub(super) replaces: Option<CertificateIdentifier<'d>>,
}

/// Answers that stand ready while the CA looks.
#[derive(Default)]
struct Answers {
    pending: Vec<Pending>,
    written: Vec<Written>,
}

/// Key and chain, PEM, in this order. The key was on disk before the CA knew of it.
pub(super) async fn run(desk: &Desk<'_>, wish: &Wish) -> Result<String> {
    let (mut order, under_way) = desk.open(wish).await?;
    if order.state().status == OrderStatus::Pending {
        let mut answers = Answers::default();
        let proved = desk.prove(&mut order, wish, &mut answers).await;
        if let Some(records) = desk.records {
            for written in &answers.written {
                if let Err(error) = records.clean_up(written).await {
                    info!("{error:#}; remove it by hand");
                }
            }
        }
        proved?;
    }
    let key = KeyPair::from_pem(&under_way.key)?;
    if order.state().status == OrderStatus::Ready {
        let mut params = CertificateParams::new(wish.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    }
    let chain = order.poll_certificate(&POLLS).await?;
    Ok(under_way.key + &chain)
}

impl Desk<'_> {
    /// The order that a former run left, if it is for the same names and still good, or a new one.
    async fn open(&self, wish: &Wish) -> Result<(Order, UnderWay)> {
        let path = self.folder.order();
        if let Some(under_way) = store::read_json::<UnderWay>(&path)?
            && under_way.names == wish.names
        {
            match self.account.order(under_way.url.clone()).await {
                Ok(mut order) => {
                    if order.state().status != OrderStatus::Invalid {
                        info!(name = %wish.label, "an order goes on where it was left");
                        return Ok((order, under_way));
                    }
                }
                Err(error) if is_of_nonce(&error) => return Err(error.into()),
                Err(Error::Api(gone)) => debug!(name = %wish.label, %gone, "the order is no more"),
                Err(error) => return Err(error.into()),
            }
        }
        let identifiers: Vec<_> = wish.names.iter().cloned().map(Identifier::Dns).collect();
        let new = || match self.profile {
            Some(profile) => NewOrder::new(&identifiers).profile(profile),
            None => NewOrder::new(&identifiers),
        };
        let order = match &self.replaces {
            None => self.account.new_order(&new()).await?,
            // "replaced already" and the like: the order itself may still be good.
            Some(old) => match self.account.new_order(&new().replaces(old.clone())).await {
                Ok(order) => order,
                Err(error) if is_of_nonce(&error) => return Err(error.into()),
                Err(error) => {
                    debug!(name = %wish.label, %error, "ordered without `replaces`");
                    self.account.new_order(&new()).await?
                }
            },
        };
        let key = KeyPair::generate()?.serialize_pem();
        let under_way = UnderWay { url: order.url().to_owned(), names: wish.names.clone(), key };
        store::write_json(&path, &under_way)?;
        Ok((order, under_way))
    }

    /// Puts up all answers, then asks the CA to look, then waits for what it finds.
    async fn prove(&self, order: &mut Order, wish: &Wish, answers: &mut Answers) -> Result<()> {
        let kind = match wish.challenge {
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
            let answer = challenge.key_authorization();
            self.answer(wish.challenge, name, &challenge.token, &answer, answers).await?;
        }
        if let Some(records) = self.records {
            for written in &answers.written {
                records.wait(written).await?;
            }
        }
        ask_to_look(order, &kind).await?;
        match order.poll_ready(&POLLS).await {
            Ok(OrderStatus::Ready) => Ok(()),
            // Not of the order: of the question for it.
            Err(error) if order.state().error.is_none() => Err(error.into()),
            Ok(_) | Err(_) => bail!(self.why(order).await),
        }
    }

    async fn answer(
        &self,
        challenge: Challenge,
        name: &str,
        token: &str,
        answer: &KeyAuthorization,
        answers: &mut Answers,
    ) -> Result<()> {
        let host = || ServerName::parse(name.as_bytes()).map_err(anyhow::Error::msg);
        match challenge {
            Challenge::TlsAlpn01 => {
                let server = challenge::server(&host()?, answer.digest().as_ref())?;
                answers.pending.push(self.keyring.answer_tls(&host()?, server));
            }
            Challenge::Http01 => {
                let pending = self.keyring.answer_http(&host()?, token, answer.as_str());
                answers.pending.push(pending);
            }
            Challenge::Dns01 => {
                let records = self.records.context("dns-01 without [acme.dns]")?;
                let value = BASE64URL_NOPAD.encode(answer.digest().as_ref());
                answers.written.push(records.present(name, value).await?);
            }
        }
        Ok(())
    }

    /// What the CA says of an invalid order. It is over, so the next run begins anew.
    async fn why(&self, order: &mut Order) -> String {
        let mut reasons = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let Ok(state) = authorization.refresh().await else { continue };
            let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            reasons.extend(errors.map(|error| format!("{}: {error}", state.identifier())));
        }
        let _gone_already = store::remove(&self.folder.order());
        match reasons.as_slice() {
            [] => "the CA calls the order invalid and does not say why".into(),
            reasons => reasons.join("; "),
        }
    }
}

/// Tells the CA that the answers are there.
async fn ask_to_look(order: &mut Order, kind: &ChallengeType) -> Result<()> {
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
