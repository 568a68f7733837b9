//! From text with places to a [`Config`]: all that is wrong is said at once.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use snisplit_common::name::Pattern;
use snisplit_common::routes::Routes;

use super::limits::{self, DraftLimits};
use super::problem::{Problem, Problems};
use super::{Config, DRAIN, HELLO_TIMEOUT, Listener, Origin, Route, value};
use crate::engine::Choice;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Item<T> {
    pub(super) origin: Origin,
    pub(super) value: T,
}

/// A configuration that is not understood yet.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) engine: Option<Item<String>>,
    pub(super) acme_bypass: Option<Item<String>>,
    pub(super) drain: Option<Item<String>>,
    pub(super) access_log: Option<Item<String>>,
    pub(super) listeners: Vec<DraftListener>,
    pub(super) routes: Vec<DraftRoute>,
    pub(super) limits: DraftLimits,
    pub(super) admin: Option<Item<String>>,
    /// From the flag: for every listener, whatever it says itself.
    pub(super) hello_timeout: Option<Item<String>>,
}

#[derive(Debug)]
pub(super) struct DraftListener {
    pub(super) address: Item<String>,
    pub(super) hello_timeout: Option<Item<String>>,
    pub(super) proxy_protocol_from: Vec<Item<String>>,
}

#[derive(Debug)]
pub(super) struct DraftRoute {
    pub(super) origin: Origin,
    pub(super) sni: Vec<Item<String>>,
    pub(super) backends: Vec<Item<String>>,
    pub(super) acme: Option<Item<String>>,
    pub(super) send_proxy: Option<Item<String>>,
    /// Options of a flag that mean nothing.
    pub(super) unknown: Vec<Item<String>>,
}

pub(super) fn build(draft: Draft) -> Result<Config, Problems> {
    let mut wrong = Wrong(Vec::new());
    let engine = wrong.opt("engine", draft.engine, |text| {
        text.parse::<Choice>().map_err(|why| format!("\"{text}\" {why}"))
    });
    let acme_bypass = wrong.opt("acme_bypass", draft.acme_bypass, |t| value::acme_bypass(&t));
    let drain = wrong.opt("drain", draft.drain, |text| value::duration(&text));
    let access_log = draft.access_log.map(|item| PathBuf::from(item.value));
    let hello_timeout =
        wrong.opt("listener.hello_timeout", draft.hello_timeout, |text| value::duration(&text));
    let limits = limits::build(draft.limits, &mut wrong);
    let admin = wrong.opt("admin.address", draft.admin, |text| value::address(&text));
    let mut listeners = listeners(draft.listeners, &mut wrong);
    if let Some(timeout) = hello_timeout {
        listeners.iter_mut().for_each(|listener| listener.hello_timeout = timeout);
    }
    let routes = routes(draft.routes, &mut wrong);
    match (routes, wrong.0) {
        (Some(routes), wrong) if wrong.is_empty() => Ok(Config {
            engine: engine.unwrap_or_default(),
            acme_bypass: acme_bypass.unwrap_or_default(),
            drain: drain.unwrap_or(DRAIN),
            listeners,
            routes,
            limits,
            admin,
            access_log,
        }),
        (_, wrong) => Err(Problems(wrong)),
    }
}

fn listeners(drafts: Vec<DraftListener>, wrong: &mut Wrong) -> Vec<Listener> {
    if drafts.is_empty() {
        wrong.0.push(Problem::overall(
            "listener",
            "nothing to listen on; add [[listener]] with address = \"[::]:443\", or --listen ADDR",
        ));
    }
    let mut built: Vec<(Listener, Origin)> = Vec::new();
    for DraftListener { address, hello_timeout, proxy_protocol_from } in drafts {
        let origin = address.origin.clone();
        let hello_timeout =
            wrong.opt("listener.hello_timeout", hello_timeout, |text| value::duration(&text));
        let from = wrong
            .all("listener.proxy_protocol_from", proxy_protocol_from, |text| value::network(&text));
        let address = wrong.one("listener.address", address, |text| value::address(&text));
        let Some(address) = address else { continue };
        if let Some((_, first)) = built.iter().find(|(other, _)| other.address == address) {
            let text = format!("{address} is listened on twice, at {first} too; remove one");
            wrong.0.push(Problem::new(&origin, "listener.address", text));
        }
        let hello_timeout = hello_timeout.unwrap_or(HELLO_TIMEOUT);
        let proxy_protocol_from = from.unwrap_or_default();
        built.push((Listener { address, hello_timeout, proxy_protocol_from }, origin));
    }
    built.into_iter().map(|(listener, _)| listener).collect()
}

fn routes(drafts: Vec<DraftRoute>, wrong: &mut Wrong) -> Option<Routes<Route>> {
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
    let DraftRoute { origin, sni, backends, acme, send_proxy, unknown } = draft;
    for Item { origin, value } in unknown {
        let text = format!("\"{value}\" is no option; one of acme=…, send_proxy=…");
        wrong.0.push(Problem::new(&origin, "route", text));
    }
    let before = wrong.0.len();
    if sni.is_empty() {
        let text = "the route has no name; add one, such as \"a.test\", \"*.a.test\" or \"*\"";
        wrong.0.push(Problem::new(&origin, "route.sni", text));
    }
    if backends.is_empty() {
        let text = "the route has no back end; add one, such as \"10.0.0.5:443\"";
        wrong.0.push(Problem::new(&origin, "route.backends", text));
    }
    let names = wrong.all("route.sni", sni, |text| value::pattern(&text));
    let backends = wrong.all("route.backends", backends, |text| value::backend(&text));
    let acme = wrong.opt("route.acme", acme, |text| value::acme(&text));
    let send_proxy = wrong.opt("route.send_proxy", send_proxy, |text| value::send_proxy(&text));
    let label = names.as_ref()?.first()?.to_string();
    let turn = AtomicUsize::new(0);
    let route = Route {
        label,
        names: names?,
        backends: backends.filter(|all| !all.is_empty())?,
        acme: acme.unwrap_or_default(),
        send_proxy: send_proxy.unwrap_or_default(),
        origin,
        turn,
    };
    (wrong.0.len() == before).then_some(route)
}

pub(super) struct Wrong(Vec<Problem>);

impl Wrong {
    pub(super) fn one<T, U>(
        &mut self,
        key: &str,
        item: Item<T>,
        parse: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        let Item { origin, value } = item;
        parse(value).map_err(|text| self.0.push(Problem::new(&origin, key, text))).ok()
    }

    pub(super) fn opt<T, U>(
        &mut self,
        key: &str,
        item: Option<Item<T>>,
        parse: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        self.one(key, item?, parse)
    }

    /// `None` if any of them is wrong.
    pub(super) fn all<T, U>(
        &mut self,
        key: &str,
        items: Vec<Item<T>>,
        parse: impl Fn(T) -> Result<U, String>,
    ) -> Option<Vec<U>> {
        let parsed: Vec<Option<U>> =
            items.into_iter().map(|item| self.one(key, item, &parse)).collect();
        parsed.into_iter().collect()
    }
}
