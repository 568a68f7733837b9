//! Labels and descriptions of decisions.

use super::{Action, DecisionReason, NameClass};

impl NameClass {
    /// Returns the identifier of the class in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Nameless => "nameless",
            Self::Managed => "managed",
            Self::Routed(kind) => kind.label(),
            Self::Unrouted => "unrouted",
        }
    }
}

impl<R, H> Action<'_, R, H> {
    /// The value of the label `action`.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Terminate(_) => "terminate",
            Self::Forward(_) => "forward",
            Self::Reject(_) => "reject",
        }
    }
}

impl DecisionReason {
    /// Returns the identifier of the reason in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::ManagedName => "managed_name",
            Self::NoCertificate => "no_certificate",
            Self::NoRoute => "no_route",
            Self::NoServerName => "no_server_name",
            Self::InvalidServerName => "invalid_server_name",
            Self::ChallengePending => "challenge_pending",
            Self::NoChallengePending => "no_challenge_pending",
            Self::NameOwner => "name_owner",
            Self::CatchAll => "catch_all",
            Self::RouteBackend => "route_backend",
            Self::RouteLocal => "route_local",
            Self::RouteReject => "route_reject",
            Self::BypassNever => "bypass_never",
            Self::BypassAlways => "bypass_always",
        }
    }

    /// Returns the description of the reason for `explain`.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Route => "no other route is more specific",
            Self::ManagedName => "this agent holds the certificate of this name",
            Self::NoCertificate => "this agent manages the name but has no certificate for it yet",
            Self::NoRoute => "no route names it and there is no catch-all route (sni = [\"*\"])",
            Self::NoServerName => "the client sent no server name",
            Self::InvalidServerName => "the server name that the client sent is invalid",
            Self::ChallengePending => "this agent has an order in progress for exactly this name",
            Self::NoChallengePending => {
                "this agent manages the name and has no order in progress for it"
            }
            Self::NameOwner => "the back end of the route that names it owns the name",
            Self::CatchAll => {
                "only the catch-all route takes this name, and a catch-all owns no name; \
                 acme = \"backend\" on that route would let its back end get certificates for \
                 names of others"
            }
            Self::RouteBackend => "the route says acme = \"backend\"",
            Self::RouteLocal => {
                "the route says acme = \"local\" and this agent has no order in progress for the name"
            }
            Self::RouteReject => "the route says acme = \"reject\"",
            Self::BypassNever => "acme_bypass = \"never\" keeps validations from all back ends",
            Self::BypassAlways => {
                "acme_bypass = \"always\" lets catch-all routes answer for any name"
            }
        }
    }
}
