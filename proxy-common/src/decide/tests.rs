use std::collections::HashMap;

use super::*;
use crate::server_name::Pattern;

#[derive(Debug, PartialEq)]
struct Route(&'static str, AcmePolicy);

impl RoutePolicy for Route {
    fn acme_policy(&self) -> AcmePolicy {
        self.1
    }
}

/// Managed names. `true`: an order for the name is pending.
struct ManagedNames(HashMap<&'static str, bool>);

impl CertificateLookup for ManagedNames {
    type Certificate = &'static str;

    fn pending_challenge(&self, name: &ServerName) -> Option<&'static str> {
        self.0.get(name.as_str()).filter(|pending| **pending).map(|_| "challenge")
    }

    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<&'static str>> {
        let exact = self.0.get(name.as_str()).map(|pending| (MatchKind::Exact, *pending));
        let wildcard =
            || (name.parent() == Some("own.test")).then_some((MatchKind::Wildcard, false));
        let (kind, pending) = exact.or_else(wildcard)?;
        Some(ManagedName { kind, certificate: (!pending).then_some("certificate") })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Want {
    Terminate(&'static str),
    Forward(&'static str),
    Refuse,
}

fn routes(acme_of_default: AcmePolicy) -> RouteTable<Route> {
    let rows = [
        ("auto", "auto.test", AcmePolicy::Auto),
        ("backend", "backend.test", AcmePolicy::Backend),
        ("local", "local.test", AcmePolicy::Local),
        ("refuse", "refuse.test", AcmePolicy::Reject),
        ("wild", "*.wild.test", AcmePolicy::Auto),
        ("inside", "theirs.own.test", AcmePolicy::Auto),
        ("default", "*", acme_of_default),
    ];
    let entry = |(label, name, acme): (&'static str, &str, _)| {
        (vec![name.parse::<Pattern>().unwrap()], Route(label, acme))
    };
    RouteTable::new(rows.map(entry)).unwrap()
}

fn check(
    routes: &RouteTable<Route>,
    bypass: AcmeBypass,
    rows: &[(&str, &[&str], Want, DecisionReason)],
) {
    let names = [("ordered.test", true), ("idle.test", false), ("our.wild.test", false)];
    let managed = ManagedNames(HashMap::from(names));
    for (name, alpn, want, reason) in rows {
        let sni = match *name {
            "" => Sni::Absent,
            name => ServerName::parse(name.as_bytes()).map_or_else(Sni::Invalid, Sni::Name),
        };
        let client_hello = ClientHello {
            sni,
            alpn: alpn.iter().map(|p| p.as_bytes().to_vec()).collect(),
            alpn_omitted: 0,
            versions: vec![0x0304],
            early_data: false,
            ech: false,
            wire_len: 0,
            records: 1,
        };
        let decision = decide(&client_hello, routes, bypass, &managed);
        let got = match decision.action {
            Action::Terminate(certificate) => Want::Terminate(certificate),
            Action::Forward(route) => Want::Forward(route.0),
            Action::Reject(Alert::UnrecognizedName) => Want::Refuse,
            Action::Reject(other) => panic!("{other:?}"),
        };
        assert_eq!((got, decision.reason), (*want, *reason), "{name:?} {alpn:?} {bypass:?}");
    }
}

const ACME: &[&str] = &["acme-tls/1"];

/// Decisions for each policy and each kind of match.
#[test]
fn validations() {
    use Want::{Forward, Refuse, Terminate};
    let rows: &[(&str, &[&str], Want, DecisionReason)] = &[
        ("", ACME, Refuse, DecisionReason::NoServerName),
        ("10.0.0.1", ACME, Refuse, DecisionReason::InvalidServerName),
        ("auto.test.", ACME, Refuse, DecisionReason::InvalidServerName),
        ("ordered.test", ACME, Terminate("challenge"), DecisionReason::ChallengePending),
        ("idle.test", ACME, Refuse, DecisionReason::NoChallengePending),
        ("refuse.test", ACME, Refuse, DecisionReason::RouteReject),
        ("local.test", ACME, Refuse, DecisionReason::RouteLocal),
        ("backend.test", ACME, Forward("backend"), DecisionReason::RouteBackend),
        ("auto.test", ACME, Forward("auto"), DecisionReason::NameOwner),
        ("AUTO.test", ACME, Forward("auto"), DecisionReason::NameOwner),
        ("x.wild.test", ACME, Forward("wild"), DecisionReason::NameOwner),
        ("wild.test", ACME, Refuse, DecisionReason::CatchAll),
        ("y.x.wild.test", ACME, Refuse, DecisionReason::CatchAll),
        ("our.wild.test", ACME, Refuse, DecisionReason::NoChallengePending),
        ("x.own.test", ACME, Refuse, DecisionReason::NoChallengePending),
        ("theirs.own.test", ACME, Forward("inside"), DecisionReason::NameOwner),
        ("own.test", ACME, Refuse, DecisionReason::CatchAll),
        ("mail.auto.test", ACME, Refuse, DecisionReason::CatchAll),
        ("victim.test", ACME, Refuse, DecisionReason::CatchAll),
    ];
    check(&routes(AcmePolicy::Auto), AcmeBypass::Owned, rows);
}

#[test]
fn a_catch_all_gets_validations_only_if_configured() {
    use Want::{Forward, Refuse};
    let victim = |want, reason| [("victim.test", ACME, want, reason)];
    let cases = [
        (AcmePolicy::Auto, AcmeBypass::Owned, Refuse, DecisionReason::CatchAll),
        (AcmePolicy::Auto, AcmeBypass::Never, Refuse, DecisionReason::BypassNever),
        (AcmePolicy::Auto, AcmeBypass::Always, Forward("default"), DecisionReason::BypassAlways),
        (AcmePolicy::Backend, AcmeBypass::Owned, Forward("default"), DecisionReason::RouteBackend),
        (AcmePolicy::Backend, AcmeBypass::Never, Forward("default"), DecisionReason::RouteBackend),
        (AcmePolicy::Local, AcmeBypass::Always, Refuse, DecisionReason::RouteLocal),
        (AcmePolicy::Reject, AcmeBypass::Always, Refuse, DecisionReason::RouteReject),
    ];
    for (acme, bypass, want, reason) in cases {
        check(&routes(acme), bypass, &victim(want, reason));
    }
}

#[test]
fn bypass_moves_the_default_of_auto_only() {
    use Want::{Forward, Refuse, Terminate};
    let rows: &[(&str, &[&str], Want, DecisionReason)] = &[
        ("auto.test", ACME, Refuse, DecisionReason::BypassNever),
        ("x.wild.test", ACME, Refuse, DecisionReason::BypassNever),
        ("backend.test", ACME, Forward("backend"), DecisionReason::RouteBackend),
        ("ordered.test", ACME, Terminate("challenge"), DecisionReason::ChallengePending),
    ];
    check(&routes(AcmePolicy::Auto), AcmeBypass::Never, rows);
    let rows: &[(&str, &[&str], Want, DecisionReason)] = &[
        ("auto.test", ACME, Forward("auto"), DecisionReason::NameOwner),
        ("refuse.test", ACME, Refuse, DecisionReason::RouteReject),
        ("idle.test", ACME, Refuse, DecisionReason::NoChallengePending),
        ("", ACME, Refuse, DecisionReason::NoServerName),
    ];
    check(&routes(AcmePolicy::Auto), AcmeBypass::Always, rows);
}

#[test]
fn ordinary_traffic() {
    use Want::{Forward, Refuse, Terminate};
    let rows: &[(&str, &[&str], Want, DecisionReason)] = &[
        ("auto.test", &["h2"], Forward("auto"), DecisionReason::Route),
        ("auto.test", &[], Forward("auto"), DecisionReason::Route),
        ("auto.test", &["h2", "acme-tls/1"], Forward("auto"), DecisionReason::Route),
        ("refuse.test", &["acme-tls/1", "h2"], Forward("refuse"), DecisionReason::Route),
        ("x.wild.test", &["ACME-TLS/1"], Forward("wild"), DecisionReason::Route),
        ("victim.test", &["h2"], Forward("default"), DecisionReason::Route),
        ("", &["h2"], Forward("default"), DecisionReason::Route),
        ("idle.test", &["h2"], Terminate("certificate"), DecisionReason::ManagedName),
        ("ordered.test", &["h2"], Refuse, DecisionReason::NoCertificate),
        ("our.wild.test", &[], Terminate("certificate"), DecisionReason::ManagedName),
        ("x.own.test", &[], Terminate("certificate"), DecisionReason::ManagedName),
        ("theirs.own.test", &[], Forward("inside"), DecisionReason::Route),
        ("auto.test.", &["h2"], Refuse, DecisionReason::InvalidServerName),
    ];
    check(&routes(AcmePolicy::Auto), AcmeBypass::Owned, rows);
}

#[test]
fn without_a_default_route_the_rest_is_refused() {
    let entry = (vec!["a.test".parse().unwrap()], Route("a", AcmePolicy::Auto));
    let routes = RouteTable::new([entry]).unwrap();
    let rows: &[(&str, &[&str], Want, DecisionReason)] = &[
        ("a.test", ACME, Want::Forward("a"), DecisionReason::NameOwner),
        ("b.test", ACME, Want::Refuse, DecisionReason::NoRoute),
        ("b.test", &[], Want::Refuse, DecisionReason::NoRoute),
        ("", &[], Want::Refuse, DecisionReason::NoServerName),
    ];
    for bypass in [AcmeBypass::Owned, AcmeBypass::Always] {
        check(&routes, bypass, rows);
    }
}
