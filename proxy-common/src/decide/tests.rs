use std::collections::HashMap;

use super::*;
use crate::name::Pattern;

#[derive(Debug, PartialEq)]
struct Route(&'static str, AcmePolicy);

impl Policy for Route {
    fn acme(&self) -> AcmePolicy {
        self.1
    }
}

/// Names of ours: `true` for the one whose order is under way.
struct Own(HashMap<&'static str, bool>);

impl Certificates for Own {
    type Held = &'static str;

    fn pending(&self, name: &ServerName) -> Option<&'static str> {
        self.0.get(name.as_str()).filter(|pending| **pending).map(|_| "challenge")
    }

    fn managed(&self, name: &ServerName) -> Option<Managed<&'static str>> {
        let exact = self.0.get(name.as_str()).map(|pending| (Claim::Exact, *pending));
        let wildcard = || (name.parent() == Some("own.test")).then_some((Claim::Wildcard, false));
        let (claim, pending) = exact.or_else(wildcard)?;
        Some(Managed { claim, held: (!pending).then_some("certificate") })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Want {
    Ours(&'static str),
    To(&'static str),
    No,
}

fn routes(acme_of_default: AcmePolicy) -> Routes<Route> {
    let rows = [
        ("auto", "auto.test", AcmePolicy::Auto),
        ("backend", "backend.test", AcmePolicy::Backend),
        ("local", "local.test", AcmePolicy::Local),
        ("refuse", "refuse.test", AcmePolicy::Refuse),
        ("wild", "*.wild.test", AcmePolicy::Auto),
        ("inside", "theirs.own.test", AcmePolicy::Auto),
        ("default", "*", acme_of_default),
    ];
    let entry = |(label, name, acme): (&'static str, &str, _)| {
        (vec![name.parse::<Pattern>().unwrap()], Route(label, acme))
    };
    Routes::new(rows.map(entry)).unwrap()
}

fn check(routes: &Routes<Route>, bypass: AcmeBypass, rows: &[(&str, &[&str], Want, Reason)]) {
    let own = [("ordered.test", true), ("idle.test", false), ("our.wild.test", false)];
    let own = Own(HashMap::from(own));
    for (name, alpn, want, reason) in rows {
        let sni = match *name {
            "" => Sni::Absent,
            name => ServerName::parse(name.as_bytes()).map_or_else(Sni::Invalid, Sni::Name),
        };
        let hello = Hello {
            sni,
            alpn: alpn.iter().map(|p| p.as_bytes().to_vec()).collect(),
            versions: vec![0x0304],
            early_data: false,
            ech: false,
            wire_len: 0,
            records: 1,
        };
        let verdict = decide(&hello, routes, bypass, &own);
        let got = match verdict.decision {
            Decision::Terminate(held) => Want::Ours(held),
            Decision::Forward(route) => Want::To(route.0),
            Decision::Refuse(Alert::UnrecognizedName) => Want::No,
            Decision::Refuse(other) => panic!("{other:?}"),
        };
        assert_eq!((got, verdict.reason), (*want, *reason), "{name:?} {alpn:?} {bypass:?}");
    }
}

const ACME: &[&str] = &["acme-tls/1"];

/// The table of design §3, top to bottom.
#[test]
fn validations() {
    use Want::{No, Ours, To};
    let rows: &[(&str, &[&str], Want, Reason)] = &[
        ("", ACME, No, Reason::NoServerName),
        ("10.0.0.1", ACME, No, Reason::BadServerName),
        ("auto.test.", ACME, No, Reason::BadServerName),
        ("ordered.test", ACME, Ours("challenge"), Reason::ChallengePending),
        ("idle.test", ACME, No, Reason::NoChallengePending),
        ("refuse.test", ACME, No, Reason::RouteRefuse),
        ("local.test", ACME, No, Reason::RouteLocal),
        ("backend.test", ACME, To("backend"), Reason::RouteBackend),
        ("auto.test", ACME, To("auto"), Reason::Owner),
        ("AUTO.test", ACME, To("auto"), Reason::Owner),
        ("x.wild.test", ACME, To("wild"), Reason::Owner),
        ("wild.test", ACME, No, Reason::CatchAll),
        ("y.x.wild.test", ACME, No, Reason::CatchAll),
        ("our.wild.test", ACME, No, Reason::NoChallengePending),
        ("x.own.test", ACME, No, Reason::NoChallengePending),
        ("theirs.own.test", ACME, To("inside"), Reason::Owner),
        ("own.test", ACME, No, Reason::CatchAll),
        ("mail.auto.test", ACME, No, Reason::CatchAll),
        ("victim.test", ACME, No, Reason::CatchAll),
    ];
    check(&routes(AcmePolicy::Auto), AcmeBypass::Owned, rows);
}

#[test]
fn a_catch_all_gets_validations_only_when_told_so() {
    use Want::{No, To};
    let victim = |want, reason| [("victim.test", ACME, want, reason)];
    let cases = [
        (AcmePolicy::Auto, AcmeBypass::Owned, No, Reason::CatchAll),
        (AcmePolicy::Auto, AcmeBypass::Never, No, Reason::BypassNever),
        (AcmePolicy::Auto, AcmeBypass::Always, To("default"), Reason::BypassAlways),
        (AcmePolicy::Backend, AcmeBypass::Owned, To("default"), Reason::RouteBackend),
        (AcmePolicy::Backend, AcmeBypass::Never, To("default"), Reason::RouteBackend),
        (AcmePolicy::Local, AcmeBypass::Always, No, Reason::RouteLocal),
        (AcmePolicy::Refuse, AcmeBypass::Always, No, Reason::RouteRefuse),
    ];
    for (acme, bypass, want, reason) in cases {
        check(&routes(acme), bypass, &victim(want, reason));
    }
}

#[test]
fn bypass_moves_the_default_of_auto_only() {
    use Want::{No, Ours, To};
    let rows: &[(&str, &[&str], Want, Reason)] = &[
        ("auto.test", ACME, No, Reason::BypassNever),
        ("x.wild.test", ACME, No, Reason::BypassNever),
        ("backend.test", ACME, To("backend"), Reason::RouteBackend),
        ("ordered.test", ACME, Ours("challenge"), Reason::ChallengePending),
    ];
    check(&routes(AcmePolicy::Auto), AcmeBypass::Never, rows);
    let rows: &[(&str, &[&str], Want, Reason)] = &[
        ("auto.test", ACME, To("auto"), Reason::Owner),
        ("refuse.test", ACME, No, Reason::RouteRefuse),
        ("idle.test", ACME, No, Reason::NoChallengePending),
        ("", ACME, No, Reason::NoServerName),
    ];
    check(&routes(AcmePolicy::Auto), AcmeBypass::Always, rows);
}

#[test]
fn ordinary_traffic() {
    use Want::{No, Ours, To};
    let rows: &[(&str, &[&str], Want, Reason)] = &[
        ("auto.test", &["h2"], To("auto"), Reason::Route),
        ("auto.test", &[], To("auto"), Reason::Route),
        ("auto.test", &["h2", "acme-tls/1"], To("auto"), Reason::Route),
        ("refuse.test", &["acme-tls/1", "h2"], To("refuse"), Reason::Route),
        ("x.wild.test", &["ACME-TLS/1"], To("wild"), Reason::Route),
        ("victim.test", &["h2"], To("default"), Reason::Route),
        ("", &["h2"], To("default"), Reason::Route),
        ("idle.test", &["h2"], Ours("certificate"), Reason::OwnName),
        ("ordered.test", &["h2"], No, Reason::NoCertificate),
        ("our.wild.test", &[], Ours("certificate"), Reason::OwnName),
        ("x.own.test", &[], Ours("certificate"), Reason::OwnName),
        ("theirs.own.test", &[], To("inside"), Reason::Route),
        ("auto.test.", &["h2"], No, Reason::BadServerName),
    ];
    check(&routes(AcmePolicy::Auto), AcmeBypass::Owned, rows);
}

#[test]
fn without_a_default_route_the_rest_is_refused() {
    let entry = (vec!["a.test".parse().unwrap()], Route("a", AcmePolicy::Auto));
    let routes = Routes::new([entry]).unwrap();
    let rows: &[(&str, &[&str], Want, Reason)] = &[
        ("a.test", ACME, Want::To("a"), Reason::Owner),
        ("b.test", ACME, Want::No, Reason::NoRoute),
        ("b.test", &[], Want::No, Reason::NoRoute),
        ("", &[], Want::No, Reason::NoServerName),
    ];
    for bypass in [AcmeBypass::Owned, AcmeBypass::Always] {
        check(&routes, bypass, rows);
    }
}
