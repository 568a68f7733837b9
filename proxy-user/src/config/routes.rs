//! `[[route]]`: from text with places to the table of routes.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use snisplit_common::route_table::RouteTable;
use snisplit_common::server_name::Pattern;

use super::build::{Item, Wrong};
use super::problem::Problem;
use super::terminate::{self, DraftTerminate, Means};
use super::{CHECK_INTERVAL, Origin, RISE_FALL, Route, Terminate, value};

/// Keys of a route, and of what is terminated, that a flag can set too.
const OPTIONS: [&str; 8] =
    ["send_proxy", "source", "balance", "check", "check_interval", "rise", "fall", "slow_start"];

/// Of a route only, and of what is terminated only.
const OF_ROUTE: [&str; 2] = ["acme", "http_backends"];
const OF_TERMINATE: [&str; 4] = ["challenge", "cert", "key", "alpn"];

fn options(section: &str) -> String {
    let own: &[&str] = if section == "route" { &OF_ROUTE } else { &OF_TERMINATE };
    [own, &OPTIONS].concat().join("=…, ") + "=…"
}

/// A route that is not understood yet.
#[derive(Debug)]
pub(super) struct DraftRoute {
    pub(super) origin: Origin,
    /// `route` or `terminate`.
    pub(super) section: &'static str,
    pub(super) sni: Vec<Item<String>>,
    pub(super) backends: Vec<Item<String>>,
    pub(super) http_backends: Vec<Item<String>>,
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
    pub(super) const fn at(origin: Origin, section: &'static str) -> Self {
        Self {
            origin,
            section,
            sni: Vec::new(),
            backends: Vec::new(),
            http_backends: Vec::new(),
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

/// The two tables of one namespace of names.
type Tables = (RouteTable<Route>, RouteTable<Arc<Terminate>>);

pub(super) fn build(
    routes: Vec<DraftRoute>,
    terminates: Vec<DraftTerminate>,
    means: Means,
    wrong: &mut Wrong,
) -> Option<Tables> {
    if routes.is_empty() && terminates.is_empty() {
        wrong.0.push(Problem::overall(
            "route",
            "no routes; add [[route]] with sni = [\"a.test\"] and backends = [\"10.0.0.5:443\"], \
             or --route 'a.test=10.0.0.5:443'",
        ));
    }
    let places = |draft: &DraftRoute| {
        let section = draft.section;
        let of_name = |item: &Item<String>| (section, item.origin.clone());
        draft.sni.iter().map(of_name).collect::<Vec<_>>()
    };
    let drafts = routes.iter().chain(terminates.iter().map(|one| &one.route));
    let places: Vec<_> = drafts.map(places).collect();
    let built: Vec<_> = routes.into_iter().map(|draft| route(draft, wrong)).collect();
    let routes: Option<Vec<Route>> = built.into_iter().collect();
    let build = |draft| terminate::build(draft, means, wrong);
    let built: Vec<_> = terminates.into_iter().map(build).collect();
    let terminates: Option<Vec<Terminate>> = built.into_iter().collect();
    let (routes, terminates) = (routes?, terminates?);
    let all = routes.iter().chain(terminates.iter().map(|one| &one.route));
    find_conflict(all.map(|route| route.names.clone()).collect(), &places, wrong)?;
    let routes = routes.into_iter().map(|route| (route.names.clone(), route));
    let terminates = terminates.into_iter().map(|one| (one.route.names.clone(), Arc::new(one)));
    RouteTable::new(routes).ok().zip(RouteTable::new(terminates).ok())
}

/// A name that two of them want, whatever their kind.
fn find_conflict(
    names: Vec<Vec<Pattern>>,
    places: &[Vec<(&str, Origin)>],
    wrong: &mut Wrong,
) -> Option<()> {
    let conflict = match RouteTable::new(names.iter().map(|names| (names.clone(), ()))) {
        Ok(_) => return Some(()),
        Err(conflict) => conflict,
    };
    let place = |route: usize, last: bool| {
        let mut all = names[route].iter().zip(&places[route]);
        let mut same = all.by_ref().filter(|(name, _)| **name == conflict.pattern);
        let found = if last { same.next_back() } else { same.next() };
        found.map_or_else(|| places[route][0].clone(), |(_, place)| place.clone())
    };
    let (first, second) = (place(conflict.first, false).1, place(conflict.second, true));
    let text = format!(
        "\"{}\" is named at {first} too; a name has one owner, so leave it in one place",
        conflict.pattern
    );
    wrong.0.push(Problem::new(&second.1, &format!("{}.sni", second.0), text));
    None
}

/// What is wrong is said; the route is then of no use, but others are read on.
pub(super) fn route(draft: DraftRoute, wrong: &mut Wrong) -> Option<Route> {
    let section = draft.section;
    let key = |name: &str| format!("{section}.{name}");
    find_missing(&draft, wrong);
    let names = wrong.all(&key("sni"), draft.sni, |text| value::pattern(&text));
    let backends = wrong.all(&key("backends"), draft.backends, |text| value::backend(&text));
    let http = draft.http_backends;
    let http_backends = wrong.all(&key("http_backends"), http, |text| value::backend(&text));
    let acme = wrong.opt(&key("acme"), draft.acme, |text| value::acme(&text));
    let send_proxy = wrong.opt(&key("send_proxy"), draft.send_proxy, |t| value::send_proxy(&t));
    let source = wrong.opt(&key("source"), draft.source, |text| {
        value::source(&text, backends.as_deref().unwrap_or_default())
    });
    let balance = wrong.opt(&key("balance"), draft.balance, |text| value::balance(&text));
    let check = wrong.opt(&key("check"), draft.check, |text| value::check(&text));
    let interval =
        wrong.opt(&key("check_interval"), draft.check_interval, |text| value::duration(&text));
    let rise = wrong.opt(&key("rise"), draft.rise, |n| value::count(n, 1));
    let fall = wrong.opt(&key("fall"), draft.fall, |n| value::count(n, 1));
    let slow_start =
        wrong.opt(&key("slow_start"), draft.slow_start, |text| value::duration_or_off(&text));
    Some(Route {
        label: names.as_ref()?.first()?.to_string(),
        names: names?,
        backends: backends.filter(|all| !all.is_empty())?,
        http_backends: http_backends.unwrap_or_default(),
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
    })
}

fn find_missing(draft: &DraftRoute, wrong: &mut Wrong) {
    let mut say = |origin: &Origin, key: &str, text: String| {
        wrong.0.push(Problem::new(origin, &format!("{}{key}", draft.section), text));
    };
    for Item { origin, value } in &draft.unknown {
        let text = format!("\"{value}\" is no option; {} are", options(draft.section));
        say(origin, "", text);
    }
    if draft.sni.is_empty() {
        let text = "the route has no name; add one, such as \"a.test\", \"*.a.test\" or \"*\"";
        say(&draft.origin, ".sni", text.into());
    }
    if draft.backends.is_empty() {
        let text = "the route has no back end; add one, such as \"10.0.0.5:443\"";
        say(&draft.origin, ".backends", text.into());
    }
}
