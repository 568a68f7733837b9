//! `[[route]]`: from text with places to the table of routes.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use snisplit_common::name::Pattern;
use snisplit_common::routes::Routes;

use super::build::{Item, Wrong};
use super::problem::Problem;
use super::{CHECK_INTERVAL, Origin, RISE_FALL, Route, value};

/// Keys of a route that a flag can set too.
const OPTIONS: [&str; 9] = [
    "acme",
    "send_proxy",
    "source",
    "balance",
    "check",
    "check_interval",
    "rise",
    "fall",
    "slow_start",
];

/// A route that is not understood yet.
#[derive(Debug)]
pub(super) struct DraftRoute {
    pub(super) origin: Origin,
    pub(super) sni: Vec<Item<String>>,
    pub(super) backends: Vec<Item<String>>,
    pub(super) acme: Option<Item<String>>,
    pub(super) send_proxy: Option<Item<String>>,
    pub(super) source: Option<Item<String>>,
    pub(super) balance: Option<Item<String>>,
    pub(super) check: Option<Item<String>>,
    pub(super) check_interval: Option<Item<String>>,
    pub(super) rise: Option<Item<i64>>,
    pub(super) fall: Option<Item<i64>>,
    pub(super) slow_start: Option<Item<String>>,
    /// Options of a flag that mean nothing.
    pub(super) unknown: Vec<Item<String>>,
}

impl DraftRoute {
    /// A route with nothing in it yet.
    pub(super) const fn at(origin: Origin) -> Self {
        Self {
            origin,
            sni: Vec::new(),
            backends: Vec::new(),
            acme: None,
            send_proxy: None,
            source: None,
            balance: None,
            check: None,
            check_interval: None,
            rise: None,
            fall: None,
            slow_start: None,
            unknown: Vec::new(),
        }
    }
}

pub(super) fn build(drafts: Vec<DraftRoute>, wrong: &mut Wrong) -> Option<Routes<Route>> {
    if drafts.is_empty() {
        wrong.0.push(Problem::overall(
            "route",
            "no routes; add [[route]] with sni = [\"a.test\"] and backends = [\"10.0.0.5:443\"], \
             or --route 'a.test=10.0.0.5:443'",
        ));
    }
    let mut entries = Vec::new();
    let mut places = Vec::new();
    for draft in drafts {
        places.push(draft.sni.iter().map(|item| item.origin.clone()).collect::<Vec<_>>());
        if let Some(route) = route(draft, wrong) {
            entries.push((route.names.clone(), route));
        }
    }
    if entries.len() < places.len() {
        return None;
    }
    let names: Vec<Vec<Pattern>> = entries.iter().map(|(names, _)| names.clone()).collect();
    let built = Routes::new(entries).map_err(|conflict| {
        let place = |route: usize, last: bool| {
            let mut all = names[route].iter().zip(&places[route]);
            let mut same = all.by_ref().filter(|(name, _)| **name == conflict.pattern);
            let found = if last { same.next_back() } else { same.next() };
            found.map(|(_, origin)| origin.clone()).unwrap_or_else(|| places[route][0].clone())
        };
        let (first, second) = (place(conflict.first, false), place(conflict.second, true));
        let text = format!(
            "\"{}\" is named at {first} too; a name has one owner, so leave it in one route",
            conflict.pattern
        );
        wrong.0.push(Problem::new(&second, "route.sni", text));
    });
    built.ok()
}

fn route(draft: DraftRoute, wrong: &mut Wrong) -> Option<Route> {
    let before = wrong.0.len();
    find_missing(&draft, wrong);
    let names = wrong.all("route.sni", draft.sni, |text| value::pattern(&text));
    let backends = wrong.all("route.backends", draft.backends, |text| value::backend(&text));
    let acme = wrong.opt("route.acme", draft.acme, |text| value::acme(&text));
    let send_proxy = wrong.opt("route.send_proxy", draft.send_proxy, |t| value::send_proxy(&t));
    let source = wrong.opt("route.source", draft.source, |text| {
        value::source(&text, backends.as_deref().unwrap_or_default())
    });
    let balance = wrong.opt("route.balance", draft.balance, |text| value::balance(&text));
    let check = wrong.opt("route.check", draft.check, |text| value::check(&text));
    let interval =
        wrong.opt("route.check_interval", draft.check_interval, |text| value::duration(&text));
    let rise = wrong.opt("route.rise", draft.rise, |n| value::count(n, 1));
    let fall = wrong.opt("route.fall", draft.fall, |n| value::count(n, 1));
    let slow_start =
        wrong.opt("route.slow_start", draft.slow_start, |text| value::duration_or_off(&text));
    let route = Route {
        label: names.as_ref()?.first()?.to_string(),
        names: names?,
        backends: backends.filter(|all| !all.is_empty())?,
        acme: acme.unwrap_or_default(),
        send_proxy: send_proxy.unwrap_or_default(),
        source: source.unwrap_or_default(),
        balance: balance.unwrap_or_default(),
        check: check.unwrap_or_default(),
        check_interval: interval.unwrap_or(CHECK_INTERVAL),
        rise: rise.unwrap_or(RISE_FALL.0),
        fall: fall.unwrap_or(RISE_FALL.1),
        slow_start: slow_start.flatten().unwrap_or(Duration::ZERO),
        origin: draft.origin,
        turn: AtomicUsize::new(0),
    };
    (wrong.0.len() == before).then_some(route)
}

fn find_missing(draft: &DraftRoute, wrong: &mut Wrong) {
    let mut say = |origin: &Origin, key: &str, text: String| {
        wrong.0.push(Problem::new(origin, key, text));
    };
    for Item { origin, value } in &draft.unknown {
        let text = format!("\"{value}\" is no option; {} are", OPTIONS.join("=…, ") + "=…");
        say(origin, "route", text);
    }
    if draft.sni.is_empty() {
        let text = "the route has no name; add one, such as \"a.test\", \"*.a.test\" or \"*\"";
        say(&draft.origin, "route.sni", text.into());
    }
    if draft.backends.is_empty() {
        let text = "the route has no back end; add one, such as \"10.0.0.5:443\"";
        say(&draft.origin, "route.backends", text.into());
    }
}
