//! `[[route]]`: from text with places to the table of routes.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use snisplit_common::route_table::RouteTable;
use snisplit_common::server_name::Pattern;

use super::diagnostic::Diagnostic;
use super::terminate::{self, AcmeCapabilities, DraftTerminate};
use super::validate::{Diagnostics, Located};
use super::{
    Backend, DEFAULT_HEALTH_CHECK_INTERVAL, DEFAULT_RISE_FALL, DEFAULT_WEIGHT, HealthCheck, Origin,
    Route, Terminate, parse,
};

/// Keys of a route, and of what is terminated, that a flag can set too.
const COMMON_KEYS: [&str; 8] = [
    "send_proxy",
    "source_address",
    "balance",
    "health_check.type",
    "health_check.interval",
    "health_check.rise",
    "health_check.fall",
    "slow_start",
];

/// Of a route only, and of what is terminated only.
const ROUTE_ONLY_KEYS: [&str; 2] = ["acme", "http_backends"];
const TERMINATE_ONLY_KEYS: [&str; 4] = ["challenge", "cert", "key", "alpn"];

fn known_keys(section: &str) -> String {
    let own: &[&str] = if section == "route" { &ROUTE_ONLY_KEYS } else { &TERMINATE_ONLY_KEYS };
    [own, &COMMON_KEYS].concat().join("=…, ") + "=…"
}

/// A route that is not understood yet.
#[derive(Debug)]
pub(super) struct DraftRoute {
    pub(super) origin: Origin,
    /// `route` or `terminate`.
    pub(super) section: &'static str,
    pub(super) sni: Vec<Located<String>>,
    pub(super) backends: Vec<DraftBackend>,
    pub(super) http_backends: Vec<DraftBackend>,
    pub(super) acme: Option<Located<String>>,
    pub(super) send_proxy: Option<Located<String>>,
    pub(super) source_address: Option<Located<String>>,
    pub(super) balance: Option<Located<String>>,
    pub(super) health_check: DraftHealthCheck,
    pub(super) slow_start: Option<Located<String>>,
    /// Options of a flag that mean nothing.
    pub(super) unknown: Vec<Located<String>>,
}

/// A back end that is not validated.
#[derive(Debug)]
pub(super) enum DraftBackend {
    /// The keys of a table; a plain string is the address alone.
    Keys { address: Located<String>, weight: Option<Located<i64>> },
    /// `ADDRESS weight=N` of a flag.
    Flag(Located<String>),
}

/// `health_check` that is not validated.
#[derive(Debug, Default)]
pub(super) struct DraftHealthCheck {
    pub(super) kind: Option<Located<String>>,
    pub(super) interval: Option<Located<String>>,
    pub(super) rise: Option<Located<i64>>,
    pub(super) fall: Option<Located<i64>>,
}

impl DraftRoute {
    /// A route with nothing in it yet.
    pub(super) const fn empty(origin: Origin, section: &'static str) -> Self {
        Self {
            origin,
            section,
            sni: Vec::new(),
            backends: Vec::new(),
            http_backends: Vec::new(),
            acme: None,
            send_proxy: None,
            source_address: None,
            balance: None,
            health_check: DraftHealthCheck { kind: None, interval: None, rise: None, fall: None },
            slow_start: None,
            unknown: Vec::new(),
        }
    }
}

/// The two tables of one namespace of names.
type RouteTables = (RouteTable<Route>, RouteTable<Arc<Terminate>>);

pub(super) fn build(
    routes: Vec<DraftRoute>,
    terminates: Vec<DraftTerminate>,
    capabilities: AcmeCapabilities,
    diagnostics: &mut Diagnostics,
) -> Option<RouteTables> {
    if routes.is_empty() && terminates.is_empty() {
        diagnostics.0.push(Diagnostic::without_origin(
            "route",
            "no routes; add [[route]] with sni = [\"a.test\"] and backends = [\"10.0.0.5:443\"], \
             or --route 'a.test=10.0.0.5:443'",
        ));
    }
    let name_origins = |draft: &DraftRoute| {
        let section = draft.section;
        let with_section = |item: &Located<String>| (section, item.origin.clone());
        draft.sni.iter().map(with_section).collect::<Vec<_>>()
    };
    let drafts = routes.iter().chain(terminates.iter().map(|one| &one.route));
    let origins: Vec<_> = drafts.map(name_origins).collect();
    let built: Vec<_> = routes.into_iter().map(|draft| build_route(draft, diagnostics)).collect();
    let routes: Option<Vec<Route>> = built.into_iter().collect();
    let build = |draft| terminate::build(draft, capabilities, diagnostics);
    let built: Vec<_> = terminates.into_iter().map(build).collect();
    let terminates: Option<Vec<Terminate>> = built.into_iter().collect();
    let (routes, terminates) = (routes?, terminates?);
    let all = routes.iter().chain(terminates.iter().map(|one| &one.route));
    report_conflict(all.map(|route| route.names.clone()).collect(), &origins, diagnostics)?;
    let routes = routes.into_iter().map(|route| (route.names.clone(), route));
    let terminates = terminates.into_iter().map(|one| (one.route.names.clone(), Arc::new(one)));
    RouteTable::new(routes).ok().zip(RouteTable::new(terminates).ok())
}

/// A name that two of them want, whatever their kind.
fn report_conflict(
    names: Vec<Vec<Pattern>>,
    origins: &[Vec<(&str, Origin)>],
    diagnostics: &mut Diagnostics,
) -> Option<()> {
    let conflict = match RouteTable::new(names.iter().map(|names| (names.clone(), ()))) {
        Ok(_) => return Some(()),
        Err(conflict) => conflict,
    };
    let origin_of = |route: usize, last: bool| {
        let mut all = names[route].iter().zip(&origins[route]);
        let mut same = all.by_ref().filter(|(name, _)| **name == conflict.pattern);
        let found = if last { same.next_back() } else { same.next() };
        found.map_or_else(|| origins[route][0].clone(), |(_, place)| place.clone())
    };
    let (first, second) = (origin_of(conflict.first, false).1, origin_of(conflict.second, true));
    let text = format!(
        "\"{}\" is named at {first} too; a name has one owner, so leave it in one place",
        conflict.pattern
    );
    diagnostics.0.push(Diagnostic::at(&second.1, &format!("{}.sni", second.0), text));
    None
}

/// What is wrong is said; the route is then of no use, but others are read on.
pub(super) fn build_route(draft: DraftRoute, diagnostics: &mut Diagnostics) -> Option<Route> {
    let section = draft.section;
    let key = |name: &str| format!("{section}.{name}");
    report_missing(&draft, diagnostics);
    let names = diagnostics.parse_all(&key("sni"), draft.sni, |text| parse::pattern(&text));
    let backends = build_backends(&key("backends"), draft.backends, diagnostics);
    let http_backends = build_backends(&key("http_backends"), draft.http_backends, diagnostics);
    let acme =
        diagnostics.parse_optional(&key("acme"), draft.acme, |text| parse::acme_policy(&text));
    let send_proxy =
        diagnostics.parse_optional(&key("send_proxy"), draft.send_proxy, |t| parse::send_proxy(&t));
    let source_address =
        diagnostics.parse_optional(&key("source_address"), draft.source_address, |text| {
            parse::source_address(&text, backends.as_deref().unwrap_or_default())
        });
    let balance =
        diagnostics.parse_optional(&key("balance"), draft.balance, |text| parse::balance(&text));
    let health_check = build_health_check(section, draft.health_check, diagnostics);
    let slow_start = diagnostics
        .parse_optional(&key("slow_start"), draft.slow_start, |text| parse::duration_or_off(&text));
    Some(Route {
        label: names.as_ref()?.first()?.to_string(),
        names: names?,
        backends: backends.filter(|all| !all.is_empty())?,
        http_backends: http_backends.unwrap_or_default(),
        acme: acme.unwrap_or_default(),
        send_proxy: send_proxy.unwrap_or_default(),
        source_address: source_address.unwrap_or_default(),
        balance: balance.unwrap_or_default(),
        health_check,
        slow_start: slow_start.flatten().unwrap_or(Duration::ZERO),
        origin: draft.origin,
        round: AtomicUsize::new(0),
    })
}

/// `None` if one of them is wrong.
fn build_backends(
    key: &str,
    drafts: Vec<DraftBackend>,
    diagnostics: &mut Diagnostics,
) -> Option<Vec<Backend>> {
    let built: Vec<Option<Backend>> = drafts
        .into_iter()
        .map(|draft| match draft {
            DraftBackend::Flag(text) => {
                diagnostics.parse(key, text, |text| parse::flag_backend(&text))
            }
            DraftBackend::Keys { address, weight } => {
                let weight_key = format!("{key}.weight");
                let address = diagnostics.parse(key, address, |text| parse::backend_addr(&text));
                let weight = match weight {
                    Some(weight) => diagnostics.parse(&weight_key, weight, parse::weight)?,
                    None => DEFAULT_WEIGHT,
                };
                address.map(|address| Backend::new(address, weight))
            }
        })
        .collect();
    built.into_iter().collect()
}

fn build_health_check(
    section: &str,
    draft: DraftHealthCheck,
    diagnostics: &mut Diagnostics,
) -> HealthCheck {
    let key = |name: &str| format!("{section}.health_check.{name}");
    let kind = diagnostics
        .parse_optional(&key("type"), draft.kind, |text| parse::health_check_kind(&text));
    let interval =
        diagnostics.parse_optional(&key("interval"), draft.interval, |text| parse::duration(&text));
    let rise = diagnostics.parse_optional(&key("rise"), draft.rise, |n| parse::count(n, 1));
    let fall = diagnostics.parse_optional(&key("fall"), draft.fall, |n| parse::count(n, 1));
    HealthCheck {
        kind: kind.flatten(),
        interval: interval.unwrap_or(DEFAULT_HEALTH_CHECK_INTERVAL),
        rise: rise.unwrap_or(DEFAULT_RISE_FALL.0),
        fall: fall.unwrap_or(DEFAULT_RISE_FALL.1),
    }
}

fn report_missing(draft: &DraftRoute, diagnostics: &mut Diagnostics) {
    let mut report = |origin: &Origin, key: &str, text: String| {
        diagnostics.0.push(Diagnostic::at(origin, &format!("{}{key}", draft.section), text));
    };
    for Located { origin, value } in &draft.unknown {
        let text = format!("\"{value}\" is no option; {} are", known_keys(draft.section));
        report(origin, "", text);
    }
    if draft.sni.is_empty() {
        let text = "the route has no name; add one, such as \"a.test\", \"*.a.test\" or \"*\"";
        report(&draft.origin, ".sni", text.into());
    }
    if draft.backends.is_empty() {
        let text = "the route has no back end; add one, such as \"10.0.0.5:443\"";
        report(&draft.origin, ".backends", text.into());
    }
}
