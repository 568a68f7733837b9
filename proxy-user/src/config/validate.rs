//! From text with places to a [`Config`]: all that is wrong is said at once.

use std::path::PathBuf;
use std::time::Duration;

use super::acme::{self, DraftAcme};
use super::diagnostic::{ConfigErrors, Diagnostic};
use super::limits::{self, DraftLimits};
use super::packet::{self, DraftPacket};
use super::route_table::{self, DraftRoute};
use super::terminate::{AcmeCapabilities, DraftTerminate};
use super::{
    Config, DEFAULT_CLIENT_HELLO_TIMEOUT, DEFAULT_DRAIN_TIMEOUT, DEFAULT_INSTANCE, Listener,
    Origin, parse,
};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) origin: Origin,
    pub(super) value: T,
}

/// A configuration that is not understood yet.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) instance: Option<Located<String>>,
    pub(super) engine: Option<Located<String>>,
    pub(super) acme_bypass: Option<Located<String>>,
    pub(super) drain_timeout: Option<Located<String>>,
    pub(super) access_log: Option<Located<String>>,
    pub(super) access_log_format: Option<Located<String>>,
    pub(super) nameservers: Vec<Located<String>>,
    pub(super) listeners: Vec<DraftListener>,
    pub(super) routes: Vec<DraftRoute>,
    pub(super) terminates: Vec<DraftTerminate>,
    pub(super) acme: Option<DraftAcme>,
    pub(super) http: Option<Located<String>>,
    pub(super) limits: DraftLimits,
    pub(super) admin: Option<Located<String>>,
    pub(super) packet: DraftPacket,
    /// From the flag: for every listener, whatever it says itself.
    pub(super) client_hello_timeout: Option<Located<String>>,
}

#[derive(Debug)]
pub(super) struct DraftListener {
    pub(super) address: Located<String>,
    pub(super) client_hello_timeout: Option<Located<String>>,
    pub(super) proxy_protocol_from: Vec<Located<String>>,
    pub(super) starttls: Option<Located<String>>,
}

pub(super) fn build(draft: Draft) -> Result<Config, ConfigErrors> {
    let mut diagnostics = Diagnostics(Vec::new());
    let capabilities = AcmeCapabilities::from_draft(&draft);
    let instance =
        diagnostics.parse_optional("instance", draft.instance, |text| parse::instance(&text));
    let engine = diagnostics.parse_optional("engine", draft.engine, |text| parse::engine(&text));
    let acme_bypass =
        diagnostics.parse_optional("acme_bypass", draft.acme_bypass, |t| parse::acme_bypass(&t));
    let drain_timeout = diagnostics
        .parse_optional("drain_timeout", draft.drain_timeout, |text| parse::duration(&text));
    let format = draft.access_log_format;
    let format =
        diagnostics.parse_optional("access_log_format", format, |text| parse::log_format(&text));
    let nameservers =
        diagnostics.parse_all("nameservers", draft.nameservers, |text| parse::nameserver(&text));
    let client_hello_timeout = diagnostics.parse_optional(
        "listener.client_hello_timeout",
        draft.client_hello_timeout,
        |text| parse::duration(&text),
    );
    let limits = limits::build(draft.limits, &mut diagnostics);
    let admin =
        diagnostics.parse_optional("admin.address", draft.admin, |text| parse::address(&text));
    let listeners = listeners(draft.listeners, client_hello_timeout, &mut diagnostics);
    let packet = packet::build(draft.packet, &mut diagnostics);
    let acme = draft.acme.and_then(|acme| acme::build(acme, &mut diagnostics));
    let http = diagnostics.parse_optional("http.address", draft.http, |text| parse::address(&text));
    let tables = route_table::build(draft.routes, draft.terminates, capabilities, &mut diagnostics);
    match (tables, diagnostics.0) {
        (Some((routes, terminates)), errors) if errors.is_empty() => Ok(Config {
            instance: instance.unwrap_or_else(|| DEFAULT_INSTANCE.into()),
            engine: engine.unwrap_or_default(),
            acme_bypass: acme_bypass.unwrap_or_default(),
            drain_timeout: drain_timeout.unwrap_or(DEFAULT_DRAIN_TIMEOUT),
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
        (_, errors) => Err(ConfigErrors(errors)),
    }
}

/// `for_all` is the flag's hello timeout, which wins over each listener's own.
fn listeners(
    drafts: Vec<DraftListener>,
    flag_timeout: Option<Duration>,
    diagnostics: &mut Diagnostics,
) -> Vec<Listener> {
    if drafts.is_empty() {
        diagnostics.0.push(Diagnostic::without_origin(
            "listener",
            "nothing to listen on; add [[listener]] with address = \"[::]:443\", or --listen ADDR",
        ));
    }
    let mut built: Vec<(Listener, Origin)> = Vec::new();
    for DraftListener {
        address,
        client_hello_timeout: listener_timeout,
        proxy_protocol_from,
        starttls,
    } in drafts
    {
        let origin = address.origin.clone();
        let client_hello_timeout =
            diagnostics.parse_optional("listener.client_hello_timeout", listener_timeout, |text| {
                parse::duration(&text)
            });
        let networks =
            diagnostics.parse_all("listener.proxy_protocol_from", proxy_protocol_from, |text| {
                parse::network(&text)
            });
        let starttls = diagnostics
            .parse_optional("listener.starttls", starttls, |text| parse::starttls(&text));
        let address = diagnostics.parse("listener.address", address, |text| parse::address(&text));
        let Some(address) = address else { continue };
        if let Some((_, first)) = built.iter().find(|(other, _)| other.address == address) {
            let text = format!("{address} is listened on twice, at {first} too; remove one");
            diagnostics.0.push(Diagnostic::at(&origin, "listener.address", text));
        }
        let client_hello_timeout =
            flag_timeout.or(client_hello_timeout).unwrap_or(DEFAULT_CLIENT_HELLO_TIMEOUT);
        let proxy_protocol_from = networks.unwrap_or_default();
        let starttls = starttls.unwrap_or_default();
        built.push((
            Listener { address, client_hello_timeout, proxy_protocol_from, starttls },
            origin,
        ));
    }
    built.into_iter().map(|(listener, _)| listener).collect()
}

pub(super) struct Diagnostics(pub(super) Vec<Diagnostic>);

impl Diagnostics {
    pub(super) fn parse<T, U>(
        &mut self,
        key: &str,
        item: Located<T>,
        parse: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        let Located { origin, value } = item;
        parse(value).map_err(|text| self.0.push(Diagnostic::at(&origin, key, text))).ok()
    }

    pub(super) fn parse_optional<T, U>(
        &mut self,
        key: &str,
        item: Option<Located<T>>,
        parse: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        self.parse(key, item?, parse)
    }

    /// `None` if any of them is wrong.
    pub(super) fn parse_all<T, U>(
        &mut self,
        key: &str,
        items: Vec<Located<T>>,
        parse: impl Fn(T) -> Result<U, String>,
    ) -> Option<Vec<U>> {
        let parsed: Vec<Option<U>> =
            items.into_iter().map(|item| self.parse(key, item, &parse)).collect();
        parsed.into_iter().collect()
    }
}
