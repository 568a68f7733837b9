//! What happens to a connection: the only place that knows the ACME policy.
//!
//! A TLS-ALPN-01 validation (RFC 8737) goes to the owner of the name, and the owner is whoever
//! the route table says. We answer what we ordered ourselves; a catch-all owns no name. Ordinary
//! traffic follows the same table, with the catch-all taking what is left.

use crate::alert::Alert;
use crate::hello::{Hello, Sni};
use crate::name::ServerName;
use crate::routes::{Claim, Routes};

/// What a route says about validations of its names (`acme` in the config).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcmePolicy {
    /// To the back end if the route names the name, else refuse; [`AcmeBypass`] moves this.
    #[default]
    Auto,
    /// To the back end, whatever kind of route it is.
    Backend,
    /// Only our own orders are answered.
    Local,
    /// None is answered.
    Refuse,
}

/// What [`AcmePolicy::Auto`] means on a listener (`acme_bypass`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcmeBypass {
    /// Names that a route owns go to it, the rest is refused.
    #[default]
    Owned,
    /// No validation reaches a back end: Traefik's `allowACMEByPass = false` with a resolver.
    Never,
    /// Catch-alls receive validations too: Traefik's `true`. Lets them get foreign certificates.
    Always,
}

/// A route as far as a decision needs it.
pub trait Policy {
    /// The route's own word on validations.
    fn acme(&self) -> AcmePolicy;
}

/// The certificates of this agent.
pub trait Certificates {
    /// What proves that a connection can be terminated here.
    type Held;
    /// The challenge certificate of an order under way for exactly this name.
    fn pending(&self, name: &ServerName) -> Option<Self::Held>;
    /// How this agent claims to terminate a name itself, if it does. A route with a more specific
    /// claim still owns the name; the configuration allows no two equal ones.
    fn managed(&self, name: &ServerName) -> Option<Managed<Self::Held>>;
}

/// A name that this agent terminates itself.
#[derive(Debug)]
pub struct Managed<H> {
    /// How specific its claim is.
    pub claim: Claim,
    /// The certificate, once there is one.
    pub held: Option<H>,
}

/// What to do with one connection, and why.
#[derive(Debug)]
pub struct Verdict<'r, R, H> {
    /// What to do.
    pub decision: Decision<'r, R, H>,
    /// Why, for logs, counters and `explain`.
    pub reason: Reason,
    /// How the name is known here.
    pub class: Class,
}

/// The three things that can be done with a connection.
#[derive(Debug)]
pub enum Decision<'r, R, H> {
    /// Speak TLS ourselves, with what we hold.
    Terminate(H),
    /// Hand it to the route's back end unread.
    Forward(&'r R),
    /// Say no.
    Refuse(Alert),
}

/// How a name is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// There is none, or none that could be somebody's.
    Nameless,
    /// This agent manages its certificate.
    Own,
    /// A route claims it.
    Routed(Claim),
    /// Nobody does.
    Unrouted,
}

/// Why a connection was decided as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Ordinary traffic to a name that a route claims.
    Route,
    /// Ordinary traffic to a name whose certificate we manage.
    OwnName,
    /// Ordinary traffic to a name of ours that has no certificate yet.
    NoCertificate,
    /// No route claims the name.
    NoRoute,
    /// No name, where one is needed.
    NoServerName,
    /// A name that is none.
    BadServerName,
    /// A validation of an order of ours.
    ChallengePending,
    /// A validation of a name of ours that we did not order.
    NoChallengePending,
    /// A validation that goes to the owner of the name.
    Owner,
    /// A validation of a name that only the catch-all route takes; it owns none.
    CatchAll,
    /// The route says `acme = "backend"`.
    RouteBackend,
    /// The route says `acme = "local"`.
    RouteLocal,
    /// The route says `acme = "refuse"`.
    RouteRefuse,
    /// `acme_bypass = "never"`.
    BypassNever,
    /// `acme_bypass = "always"`.
    BypassAlways,
}

/// Decides one connection.
pub fn decide<'r, R: Policy, C: Certificates>(
    hello: &Hello,
    routes: &'r Routes<R>,
    bypass: AcmeBypass,
    certificates: &C,
) -> Verdict<'r, R, C::Held> {
    let name = match &hello.sni {
        Sni::Name(name) => Some(name),
        Sni::Absent => None,
        Sni::Invalid(_) => return refuse(Reason::BadServerName, Class::Nameless),
    };
    match hello.is_acme_validation() {
        false => ordinary(name, routes, certificates),
        true => validation(name, routes, bypass, certificates),
    }
}

fn ordinary<'r, R, C: Certificates>(
    name: Option<&ServerName>,
    routes: &'r Routes<R>,
    certificates: &C,
) -> Verdict<'r, R, C::Held> {
    match name.and_then(|name| own(name, routes, certificates)) {
        Some(Managed { held: Some(held), .. }) => terminate(held, Reason::OwnName),
        Some(Managed { held: None, .. }) => refuse(Reason::NoCertificate, Class::Own),
        None => match (routes.owner(name), name) {
            (Some(owner), _) => forward(owner.route, Reason::Route, owner.claim),
            (None, Some(_)) => refuse(Reason::NoRoute, Class::Unrouted),
            (None, None) => refuse(Reason::NoServerName, Class::Nameless),
        },
    }
}

/// A name of our own, unless a route claims it more specifically.
fn own<R, C: Certificates>(
    name: &ServerName,
    routes: &Routes<R>,
    certificates: &C,
) -> Option<Managed<C::Held>> {
    let managed = certificates.managed(name)?;
    let is_ours = routes.owner(Some(name)).is_none_or(|owner| managed.claim <= owner.claim);
    is_ours.then_some(managed)
}

/// Decides a CA's validation of a name, by whichever challenge (RFC 8737, RFC 8555 §8.3).
pub fn validation<'r, R: Policy, C: Certificates>(
    name: Option<&ServerName>,
    routes: &'r Routes<R>,
    bypass: AcmeBypass,
    certificates: &C,
) -> Verdict<'r, R, C::Held> {
    let Some(name) = name else {
        return refuse(Reason::NoServerName, Class::Nameless);
    };
    if let Some(held) = certificates.pending(name) {
        return terminate(held, Reason::ChallengePending);
    }
    if own(name, routes, certificates).is_some() {
        return refuse(Reason::NoChallengePending, Class::Own);
    }
    let Some(owner) = routes.owner(Some(name)) else {
        return refuse(Reason::NoRoute, Class::Unrouted);
    };
    let class = Class::Routed(owner.claim);
    match (owner.route.acme(), bypass, owner.claim) {
        (AcmePolicy::Refuse, _, _) => refuse(Reason::RouteRefuse, class),
        (AcmePolicy::Local, _, _) => refuse(Reason::RouteLocal, class),
        (AcmePolicy::Backend, _, claim) => forward(owner.route, Reason::RouteBackend, claim),
        (AcmePolicy::Auto, AcmeBypass::Never, _) => refuse(Reason::BypassNever, class),
        (AcmePolicy::Auto, AcmeBypass::Owned, Claim::Default) => refuse(Reason::CatchAll, class),
        (AcmePolicy::Auto, AcmeBypass::Always, claim @ Claim::Default) => {
            forward(owner.route, Reason::BypassAlways, claim)
        }
        (AcmePolicy::Auto, _, claim) => forward(owner.route, Reason::Owner, claim),
    }
}

const fn terminate<'r, R, H>(held: H, reason: Reason) -> Verdict<'r, R, H> {
    Verdict { decision: Decision::Terminate(held), reason, class: Class::Own }
}

const fn forward<R, H>(route: &R, reason: Reason, claim: Claim) -> Verdict<'_, R, H> {
    Verdict { decision: Decision::Forward(route), reason, class: Class::Routed(claim) }
}

/// Every refusal here is about the name, so one alert says it all (RFC 6066 §3, RFC 8737 §4).
const fn refuse<'r, R, H>(reason: Reason, class: Class) -> Verdict<'r, R, H> {
    Verdict { decision: Decision::Refuse(Alert::UnrecognizedName), reason, class }
}

mod words;

#[cfg(test)]
mod tests;
