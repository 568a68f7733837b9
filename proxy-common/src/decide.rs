//! Decision about a connection: forward, terminate or reject. Only this module knows the ACME policy.
//!
//! The route table says who owns a name. A TLS-ALPN-01 validation (RFC 8737) goes to the owner of its
//! name. The agent answers validations of its own orders. A catch-all owns no name. Ordinary traffic
//! follows the same table, and the catch-all gets all names that no other route has.

use crate::alert::Alert;
use crate::client_hello::{ClientHello, Sni};
use crate::route_table::{MatchKind, RouteTable};
use crate::server_name::ServerName;

/// Policy of a route for validations of its names (`acme` in the configuration).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcmePolicy {
    /// Forward if the route names the name, reject otherwise. [`AcmeBypass`] changes this.
    #[default]
    Auto,
    /// Forward, also if the route is a catch-all.
    Backend,
    /// Answer validations of the agent's own orders only.
    Local,
    /// Reject all validations.
    Reject,
}

/// Meaning of [`AcmePolicy::Auto`] on a listener (`acme_bypass`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcmeBypass {
    /// Forward validations of names that a route owns, and reject all others.
    #[default]
    Owned,
    /// Forward no validations, like Traefik's `allowACMEByPass = false` with a resolver.
    Never,
    /// Forward to catch-alls too, like Traefik's `true`. Their back ends can then get certificates for names
    /// that they do not own.
    Always,
}

/// Part of a route that a decision needs.
pub trait RoutePolicy {
    /// Returns the policy for validations.
    fn acme_policy(&self) -> AcmePolicy;
}

/// Look-up of the certificates of this agent.
pub trait CertificateLookup {
    /// Certificate that terminates a connection.
    type Certificate;
    /// Returns the challenge certificate of a pending order for exactly this name.
    fn pending_challenge(&self, name: &ServerName) -> Option<Self::Certificate>;
    /// Returns how this agent terminates a name itself, if it does. A route with a more specific match still
    /// owns the name. The configuration does not allow two matches of the same kind.
    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<Self::Certificate>>;
}

/// A name that this agent terminates itself.
#[derive(Debug)]
pub struct ManagedName<H> {
    /// How specific the match of its `[[terminate]]` entry is.
    pub kind: MatchKind,
    /// Certificate. `None`: the agent does not have one yet.
    pub certificate: Option<H>,
}

/// Decision about one connection, with its reason.
#[derive(Debug)]
pub struct Decision<'r, R, H> {
    /// Action to take.
    pub action: Action<'r, R, H>,
    /// Reason, for logs, metrics and `explain`.
    pub reason: DecisionReason,
    /// Class of the name.
    pub name_class: NameClass,
}

/// Action for a connection.
#[derive(Debug)]
pub enum Action<'r, R, H> {
    /// Terminate TLS with this certificate.
    Terminate(H),
    /// Forward the connection to a back end of this route.
    Forward(&'r R),
    /// Send this alert and close the connection.
    Reject(Alert),
}

/// Class of a name: what the configuration knows about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NameClass {
    /// The client sent no name, or an invalid one.
    Nameless,
    /// This agent manages its certificate.
    Managed,
    /// A route has it.
    Routed(MatchKind),
    /// No route has it.
    Unrouted,
}

/// Reason of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecisionReason {
    /// Ordinary traffic to a name of a route.
    Route,
    /// Ordinary traffic to a name whose certificate this agent manages.
    ManagedName,
    /// Ordinary traffic to a managed name that has no certificate yet.
    NoCertificate,
    /// No route has the name.
    NoRoute,
    /// The client sent no name, and there is no catch-all.
    NoServerName,
    /// The client sent an invalid name.
    InvalidServerName,
    /// Validation of a pending order of this agent.
    ChallengePending,
    /// Validation of a managed name without a pending order.
    NoChallengePending,
    /// Validation that goes to the owner of the name.
    NameOwner,
    /// Validation of a name that only the catch-all route has. A catch-all owns no name.
    CatchAll,
    /// The route has `acme = "backend"`.
    RouteBackend,
    /// The route has `acme = "local"`.
    RouteLocal,
    /// The route has `acme = "reject"`.
    RouteReject,
    /// The listener has `acme_bypass = "never"`.
    BypassNever,
    /// The listener has `acme_bypass = "always"`.
    BypassAlways,
}

/// Decides about one connection.
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

/// Returns how this agent manages a name, unless a route has a more specific match.
fn managed_name_for<R, C: CertificateLookup>(
    name: &ServerName,
    routes: &RouteTable<R>,
    certificates: &C,
) -> Option<ManagedName<C::Certificate>> {
    let managed = certificates.managed_name(name)?;
    let is_managed_here = routes.lookup(Some(name)).is_none_or(|found| managed.kind <= found.kind);
    is_managed_here.then_some(managed)
}

/// Decides about a validation by TLS-ALPN-01 (RFC 8737) or HTTP-01 (RFC 8555 §8.3).
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

/// Rejects a connection with `unrecognized_name`. All rejections here concern the name (RFC 6066 §3, RFC
/// 8737 §4).
const fn reject<'r, R, H>(reason: DecisionReason, name_class: NameClass) -> Decision<'r, R, H> {
    Decision { action: Action::Reject(Alert::UnrecognizedName), reason, name_class }
}

mod labels;

#[cfg(test)]
mod tests;
