//! Validations reach the owner of their name only, for random route tables.
//!
//! The test computes the owner from the text of the patterns, independently of the route table.

use proptest::prelude::*;
use snisplit_common::client_hello::{ClientHello, Sni};
use snisplit_common::decide::{
    AcmeBypass, AcmePolicy, Action, CertificateLookup, ManagedName, RoutePolicy, decide,
};
use snisplit_common::route_table::{MatchKind, RouteTable};
use snisplit_common::server_name::{Pattern, ServerName};

#[derive(Clone, Debug)]
struct Route {
    number: usize,
    acme: AcmePolicy,
}

impl RoutePolicy for Route {
    fn acme_policy(&self) -> AcmePolicy {
        self.acme
    }
}

/// Managed names and the kinds of their matches.
struct ManagedNames(Vec<String>);

impl CertificateLookup for ManagedNames {
    type Certificate = ();

    fn pending_challenge(&self, _: &ServerName) -> Option<()> {
        None
    }

    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<()>> {
        let rank = specificity(&self.0, name)?;
        let claim = if rank == 0 { MatchKind::Exact } else { MatchKind::Wildcard };
        Some(ManagedName { kind: claim, certificate: Some(()) })
    }
}

/// Kind of match from the text of a pattern: 0 for a full name, 1 for a wildcard, 2 for the catch-all.
fn specificity(patterns: &[String], name: &ServerName) -> Option<usize> {
    let parent = name.as_str().split_once('.').map(|(_, rest)| format!("*.{rest}"));
    let rank = |pattern: &String| match pattern.as_str() {
        text if text == name.as_str() => Some(0),
        text if Some(text) == parent.as_deref() => Some(1),
        "*" => Some(2),
        _ => None,
    };
    patterns.iter().filter_map(rank).min()
}

fn pattern() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]\\.t", "[ab]\\.[ab]\\.t", "\\*\\.[ab]\\.t", "\\*\\.t", "\\*"]
}

fn policy() -> impl Strategy<Value = AcmePolicy> {
    prop_oneof![
        4 => Just(AcmePolicy::Auto),
        1 => Just(AcmePolicy::Backend),
        1 => Just(AcmePolicy::Local),
        1 => Just(AcmePolicy::Reject),
    ]
}

fn validation_of(name: ServerName) -> ClientHello {
    ClientHello {
        sni: Sni::Name(name),
        alpn: vec![b"acme-tls/1".to_vec()],
        alpn_omitted: 0,
        versions: vec![],
        early_data: false,
        ech: false,
        wire_len: 0,
        records: 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_validation_reaches_the_owner_or_nobody(
        rows in prop::collection::vec((prop::collection::vec(pattern(), 1..4), policy()), 1..6),
        own in prop::collection::vec(prop_oneof!["[ab]\\.t", "\\*\\.[ab]\\.t"], 0..2),
        bypass in prop_oneof![
            Just(AcmeBypass::Owned), Just(AcmeBypass::Never), Just(AcmeBypass::Always)
        ],
        name in prop_oneof!["[ab]\\.t", "[ab]\\.[ab]\\.t", "[ab]\\.[ab]\\.[ab]\\.t"],
    ) {
        let parsed = |row: &Vec<String>| row.iter().map(|p| p.parse::<Pattern>().unwrap()).collect();
        let entries = rows.iter().enumerate().map(|(number, (row, acme))| {
            (parsed(row), Route { number, acme: *acme })
        });
        // The configuration does not allow two routes with one name, or a managed name that is also routed.
        let Ok(routes) = RouteTable::new(entries) else { return Ok(()) };
        prop_assume!(own.iter().all(|ours| rows.iter().all(|(row, _)| !row.contains(ours))));
        let name = ServerName::parse(name.as_bytes()).unwrap();
        let ranked = rows.iter().enumerate().filter_map(|(number, (row, _))| {
            Some((specificity(row, &name)?, number))
        });
        let owner = ranked.min();
        let ours = specificity(&own, &name);
        let decision = decide(&validation_of(name), &routes, bypass, &ManagedNames(own));
        if let Action::Forward(route) = decision.action {
            let (rank, number) = owner.expect("somebody");
            prop_assert_eq!(route.number, number, "only the most specific route");
            prop_assert!(ours.is_none_or(|ours| ours > rank), "never a managed name");
            prop_assert!(!matches!(route.acme, AcmePolicy::Local | AcmePolicy::Reject));
            // A catch-all gets a validation only if the configuration allows it explicitly.
            let is_allowed_by_config = route.acme == AcmePolicy::Backend || bypass == AcmeBypass::Always;
            prop_assert!(rank < 2 || is_allowed_by_config);
            prop_assert!(bypass != AcmeBypass::Never || route.acme == AcmePolicy::Backend);
        }
    }
}
