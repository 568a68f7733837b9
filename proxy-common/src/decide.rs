//! What happens to a connection: the only place that knows the ACME policy.
//!
//! A TLS-ALPN-01 validation (RFC 8737) goes to the owner of the name, and the owner is whoever
//! the route table says. We answer what we ordered ourselves; a catch-all owns no name. Ordinary
//! traffic follows the same table, with the catch-all taking what is left.

use crate::alert::Alert;
use crate::client_hello::{ClientHello, Sni};
use crate::route_table::{MatchKind, RouteTable};
use crate::server_name::ServerName;

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
    Reject,
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
pub trait RoutePolicy {
    /// The route's own word on validations.
    fn acme_policy(&self) -> AcmePolicy;
}

/// The certificates of this agent.
pub trait CertificateLookup {
    /// What proves that a connection can be terminated here.
    type Certificate;
    /// The challenge certificate of an order under way for exactly this name.
    fn pending_challenge(&self, name: &ServerName) -> Option<Self::Certificate>;
    /// How this agent claims to terminate a name itself, if it does. A route with a more specific
    /// claim still owns the name; the configuration allows no two equal ones.
    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<Self::Certificate>>;
}

/// A name that this agent terminates itself.
#[derive(Debug)]
pub struct ManagedName<H> {
    /// How specific its claim is.
    pub kind: MatchKind,
    /// The certificate, once there is one.
    pub certificate: Option<H>,
}

/// What to do with one connection, and why.
#[derive(Debug)]
pub struct Decision<'r, R, H> {
    /// What to do.
    pub action: Action<'r, R, H>,
    /// Why, for logs, counters and `explain`.
    pub reason: DecisionReason,
    /// How the name is known here.
    pub name_class: NameClass,
}

/// The three things that can be done with a connection.
#[derive(Debug)]
pub enum Action<'r, R, H> {
    /// Speak TLS ourselves, with what we hold.
    Terminate(H),
    /// Hand it to the route's back end unread.
    Forward(&'r R),
    /// Say no.
    Reject(Alert),
}

/// How a name is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NameClass {
    /// There is none, or none that could be somebody's.
    Nameless,
    /// This agent manages its certificate.
    Managed,
    /// A route claims it.
    Routed(MatchKind),
    /// Nobody does.
    Unrouted,
}

/// Why a connection was decided as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecisionReason {
    /// Ordinary traffic to a name that a route claims.
    Route,
    /// Ordinary traffic to a name whose certificate we manage.
    ManagedName,
    /// Ordinary traffic to a name of ours that has no certificate yet.
    NoCertificate,
    /// No route claims the name.
    NoRoute,
    /// No name, where one is needed.
    NoServerName,
    /// A name that is none.
    InvalidServerName,
    /// A validation of an order of ours.
    ChallengePending,
    /// A validation of a name of ours that we did not order.
    NoChallengePending,
    /// A validation that goes to the owner of the name.
    NameOwner,
    /// A validation of a name that only the catch-all route takes; it owns none.
    CatchAll,
    /// The route says `acme = "backend"`.
    RouteBackend,
    /// The route says `acme = "local"`.
    RouteLocal,
    /// The route says `acme = "reject"`.
    RouteReject,
    /// `acme_bypass = "never"`.
    BypassNever,
    /// `acme_bypass = "always"`.
    BypassAlways,
}

/// Decides one connection.
pub fn decide<'r, R: RoutePolicy, C: CertificateLookup>(
    client_hello: &ClientHello,
    routes: &'r RouteTable<R>,
    bypass: AcmeBypass,
    certificates: &C,
) -> Decision<'r, R, C::Certificate> {
    let name = match &client_hello.sni {
        Sni::Name(name) => Some(name),
        Sni::Absent => None,
        Sni::Invalid(_) => return reject(DecisionReason::InvalidServerName, NameClass::Nameless),
    };
    match client_hello.is_acme_validation() {
        false => decide_ordinary(name, routes, certificates),
        true => decide_validation(name, routes, bypass, certificates),
    }
}

fn decide_ordinary<'r, R, C: CertificateLookup>(
    name: Option<&ServerName>,
    routes: &'r RouteTable<R>,
    certificates: &C,
) -> Decision<'r, R, C::Certificate> {
    match name.and_then(|name| managed_name_for(name, routes, certificates)) {
        Some(ManagedName { certificate: Some(certificate), .. }) => {
            terminate(certificate, DecisionReason::ManagedName)
        }
        Some(ManagedName { certificate: None, .. }) => {
            reject(DecisionReason::NoCertificate, NameClass::Managed)
        }
        None => match (routes.lookup(name), name) {
            (Some(found), _) => forward(found.route, DecisionReason::Route, found.kind),
            (None, Some(_)) => reject(DecisionReason::NoRoute, NameClass::Unrouted),
            (None, None) => reject(DecisionReason::NoServerName, NameClass::Nameless),
        },
    }
}

/// A name of our own, unless a route claims it more specifically.
fn managed_name_for<R, C: CertificateLookup>(
    name: &ServerName,
    routes: &RouteTable<R>,
    certificates: &C,
) -> Option<ManagedName<C::Certificate>> {
    let managed = certificates.managed_name(name)?;
    let is_managed_here = routes.lookup(Some(name)).is_none_or(|found| managed.kind <= found.kind);
    is_managed_here.then_some(managed)
}

/// Decides a CA's validation of a name, by whichever challenge (RFC 8737, RFC 8555 §8.3).
pub fn decide_validation<'r, R: RoutePolicy, C: CertificateLookup>(
    name: Option<&ServerName>,
    routes: &'r RouteTable<R>,
    bypass: AcmeBypass,
    certificates: &C,
) -> Decision<'r, R, C::Certificate> {
    let Some(name) = name else {
        return reject(DecisionReason::NoServerName, NameClass::Nameless);
    };
    if let Some(certificate) = certificates.pending_challenge(name) {
        return terminate(certificate, DecisionReason::ChallengePending);
    }
    if managed_name_for(name, routes, certificates).is_some() {
        return reject(DecisionReason::NoChallengePending, NameClass::Managed);
    }
    let Some(found) = routes.lookup(Some(name)) else {
        return reject(DecisionReason::NoRoute, NameClass::Unrouted);
    };
    let name_class = NameClass::Routed(found.kind);
    match (found.route.acme_policy(), bypass, found.kind) {
        (AcmePolicy::Reject, _, _) => reject(DecisionReason::RouteReject, name_class),
        (AcmePolicy::Local, _, _) => reject(DecisionReason::RouteLocal, name_class),
        (AcmePolicy::Backend, _, kind) => forward(found.route, DecisionReason::RouteBackend, kind),
        (AcmePolicy::Auto, AcmeBypass::Never, _) => reject(DecisionReason::BypassNever, name_class),
        (AcmePolicy::Auto, AcmeBypass::Owned, MatchKind::Default) => {
            reject(DecisionReason::CatchAll, name_class)
        }
        (AcmePolicy::Auto, AcmeBypass::Always, kind @ MatchKind::Default) => {
            forward(found.route, DecisionReason::BypassAlways, kind)
        }
        (AcmePolicy::Auto, _, kind) => forward(found.route, DecisionReason::NameOwner, kind),
    }
}

const fn terminate<'r, R, H>(certificate: H, reason: DecisionReason) -> Decision<'r, R, H> {
    Decision { action: Action::Terminate(certificate), reason, name_class: NameClass::Managed }
}

const fn forward<R, H>(route: &R, reason: DecisionReason, kind: MatchKind) -> Decision<'_, R, H> {
    Decision { action: Action::Forward(route), reason, name_class: NameClass::Routed(kind) }
}

/// Every refusal here is about the name, so one alert says it all (RFC 6066 §3, RFC 8737 §4).
const fn reject<'r, R, H>(reason: DecisionReason, name_class: NameClass) -> Decision<'r, R, H> {
    Decision { action: Action::Reject(Alert::UnrecognizedName), reason, name_class }
}

mod labels;

#[cfg(test)]
mod tests;
