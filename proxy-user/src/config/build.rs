//! From text with places to a [`Config`]: all that is wrong is said at once.

use std::path::PathBuf;
use std::time::Duration;

use super::acme::{self, DraftAcme};
use super::limits::{self, DraftLimits};
use super::packet::{self, DraftPacket};
use super::problem::{Problem, Problems};
use super::routes::{self, DraftRoute};
use super::terminate::{DraftTerminate, Means};
use super::{Config, DRAIN, HELLO_TIMEOUT, INSTANCE, Listener, Origin, value};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Item<T> {
    pub(super) origin: Origin,
    pub(super) value: T,
}

/// A configuration that is not understood yet.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) instance: Option<Item<String>>,
    pub(super) engine: Option<Item<String>>,
    pub(super) acme_bypass: Option<Item<String>>,
    pub(super) drain: Option<Item<String>>,
    pub(super) access_log: Option<Item<String>>,
    pub(super) access_log_format: Option<Item<String>>,
    pub(super) nameservers: Vec<Item<String>>,
    pub(super) listeners: Vec<DraftListener>,
    pub(super) routes: Vec<DraftRoute>,
    pub(super) terminates: Vec<DraftTerminate>,
    pub(super) acme: Option<DraftAcme>,
    pub(super) http: Option<Item<String>>,
    pub(super) limits: DraftLimits,
    pub(super) admin: Option<Item<String>>,
    pub(super) packet: DraftPacket,
    /// From the flag: for every listener, whatever it says itself.
    pub(super) hello_timeout: Option<Item<String>>,
}

#[derive(Debug)]
pub(super) struct DraftListener {
    pub(super) address: Item<String>,
    pub(super) hello_timeout: Option<Item<String>>,
    pub(super) proxy_protocol_from: Vec<Item<String>>,
    pub(super) starttls: Option<Item<String>>,
}

pub(super) fn build(draft: Draft) -> Result<Config, Problems> {
    let mut wrong = Wrong(Vec::new());
    let means = Means::of(&draft);
    let instance = wrong.opt("instance", draft.instance, |text| value::instance(&text));
    let engine = wrong.opt("engine", draft.engine, |text| value::engine(&text));
    let acme_bypass = wrong.opt("acme_bypass", draft.acme_bypass, |t| value::acme_bypass(&t));
    let drain = wrong.opt("drain", draft.drain, |text| value::duration(&text));
    let format = draft.access_log_format;
    let format = wrong.opt("access_log_format", format, |text| value::log_format(&text));
    let nameservers = wrong.all("nameservers", draft.nameservers, |text| value::nameserver(&text));
    let hello_timeout =
        wrong.opt("listener.hello_timeout", draft.hello_timeout, |text| value::duration(&text));
    let limits = limits::build(draft.limits, &mut wrong);
    let admin = wrong.opt("admin.address", draft.admin, |text| value::address(&text));
    let listeners = listeners(draft.listeners, hello_timeout, &mut wrong);
    let packet = packet::build(draft.packet, &mut wrong);
    let acme = draft.acme.and_then(|acme| acme::build(acme, &mut wrong));
    let http = wrong.opt("http.address", draft.http, |text| value::address(&text));
    let tables = routes::build(draft.routes, draft.terminates, means, &mut wrong);
    match (tables, wrong.0) {
        (Some((routes, terminates)), wrong) if wrong.is_empty() => Ok(Config {
            instance: instance.unwrap_or_else(|| INSTANCE.into()),
            engine: engine.unwrap_or_default(),
            acme_bypass: acme_bypass.unwrap_or_default(),
            drain: drain.unwrap_or(DRAIN),
            listeners,
            routes,
            terminates,
            acme,
            http,
            limits,
            admin,
            nameservers: nameservers.unwrap_or_default(),
            packet,
            access_log: draft.access_log.map(|item| PathBuf::from(item.value)),
            access_log_format: format.unwrap_or_default(),
        }),
        (_, wrong) => Err(Problems(wrong)),
    }
}

/// `for_all` is the flag's hello timeout, which wins over each listener's own.
fn listeners(
    drafts: Vec<DraftListener>,
    for_all: Option<Duration>,
    wrong: &mut Wrong,
) -> Vec<Listener> {
    if drafts.is_empty() {
        wrong.0.push(Problem::overall(
            "listener",
            "nothing to listen on; add [[listener]] with address = \"[::]:443\", or --listen ADDR",
        ));
    }
    let mut built: Vec<(Listener, Origin)> = Vec::new();
    for DraftListener { address, hello_timeout, proxy_protocol_from, starttls } in drafts {
        let origin = address.origin.clone();
        let hello_timeout =
            wrong.opt("listener.hello_timeout", hello_timeout, |text| value::duration(&text));
        let from = wrong
            .all("listener.proxy_protocol_from", proxy_protocol_from, |text| value::network(&text));
        let starttls = wrong.opt("listener.starttls", starttls, |text| value::starttls(&text));
        let address = wrong.one("listener.address", address, |text| value::address(&text));
        let Some(address) = address else { continue };
        if let Some((_, first)) = built.iter().find(|(other, _)| other.address == address) {
            let text = format!("{address} is listened on twice, at {first} too; remove one");
            wrong.0.push(Problem::new(&origin, "listener.address", text));
        }
        let hello_timeout = for_all.or(hello_timeout).unwrap_or(HELLO_TIMEOUT);
        let proxy_protocol_from = from.unwrap_or_default();
        let starttls = starttls.unwrap_or_default();
        built.push((Listener { address, hello_timeout, proxy_protocol_from, starttls }, origin));
    }
    built.into_iter().map(|(listener, _)| listener).collect()
}

pub(super) struct Wrong(pub(super) Vec<Problem>);

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
