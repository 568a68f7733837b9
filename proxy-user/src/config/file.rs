//! The TOML file: its shape and where each value stands. Meaning comes later, in `build`.

use std::fs;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::Origin;
use super::build::{Draft, DraftListener, Item};
use super::limits::DraftLimits;
use super::problem::{Problem, Problems};
use super::routes::DraftRoute;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    engine: Option<Spanned<String>>,
    acme_bypass: Option<Spanned<String>>,
    drain: Option<Spanned<String>>,
    access_log: Option<Spanned<String>>,
    access_log_format: Option<Spanned<String>>,
    #[serde(default)]
    nameservers: Vec<Spanned<String>>,
    #[serde(default)]
    listener: Vec<Spanned<Listener>>,
    #[serde(default)]
    route: Vec<Spanned<Route>>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    admin: Admin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listener {
    address: Spanned<String>,
    hello_timeout: Option<Spanned<String>>,
    #[serde(default)]
    proxy_protocol_from: Vec<Spanned<String>>,
    starttls: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    sni: Vec<Spanned<String>>,
    backends: Vec<Spanned<String>>,
    acme: Option<Spanned<String>>,
    send_proxy: Option<Spanned<String>>,
    source: Option<Spanned<String>>,
    balance: Option<Spanned<String>>,
    check: Option<Spanned<String>>,
    check_interval: Option<Spanned<String>>,
    rise: Option<Spanned<i64>>,
    fall: Option<Spanned<i64>>,
    slow_start: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    hello_bytes: Option<Spanned<i64>>,
    dial_timeout: Option<Spanned<String>>,
    answer_timeout: Option<Spanned<String>>,
    max_connections: Option<Spanned<i64>>,
    max_peeking: Option<Spanned<i64>>,
    per_source: Option<Spanned<i64>>,
    accept_rate: Option<Spanned<i64>>,
    idle_timeout: Option<Spanned<String>>,
    keepalive: Option<Spanned<String>>,
    user_timeout: Option<Spanned<String>>,
    #[serde(default)]
    backends_allowed: Vec<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Admin {
    address: Option<Spanned<String>>,
}

/// Reads a file; a fault in its syntax or shape is one problem, since nothing behind it is certain.
pub(super) fn read(path: &Path) -> Result<Draft, Problems> {
    let text = fs::read_to_string(path).map_err(|error| {
        let text = format!("cannot be read: {error}");
        Problems(vec![Problem::overall(&path.display().to_string(), text)])
    })?;
    let place = Place { path, text: &text };
    let file: File = toml::from_str(&text).map_err(|error| Problems(vec![place.shape(&error)]))?;
    Ok(place.draft(file))
}

struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn at(&self, span: Range<usize>) -> Origin {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        Origin::File { path: self.path.into(), line }
    }

    fn item<T>(&self, value: Spanned<T>) -> Item<T> {
        Item { origin: self.at(value.span()), value: value.into_inner() }
    }

    fn draft(&self, file: File) -> Draft {
        let some = |value: Option<Spanned<String>>| value.map(|value| self.item(value));
        let all = |values: Vec<Spanned<String>>| {
            values.into_iter().map(|value| self.item(value)).collect()
        };
        let listener = |listener: Spanned<Listener>| {
            let listener = listener.into_inner();
            DraftListener {
                address: self.item(listener.address),
                hello_timeout: some(listener.hello_timeout),
                proxy_protocol_from: all(listener.proxy_protocol_from),
                starttls: some(listener.starttls),
            }
        };
        Draft {
            engine: some(file.engine),
            acme_bypass: some(file.acme_bypass),
            drain: some(file.drain),
            access_log: some(file.access_log),
            access_log_format: some(file.access_log_format),
            nameservers: all(file.nameservers),
            listeners: file.listener.into_iter().map(listener).collect(),
            routes: file.route.into_iter().map(|route| self.route(route)).collect(),
            limits: self.limits(file.limits),
            admin: some(file.admin.address),
            hello_timeout: None,
        }
    }

    fn route(&self, route: Spanned<Route>) -> DraftRoute {
        let origin = self.at(route.span());
        let route = route.into_inner();
        let text = |value: Option<Spanned<String>>| value.map(|value| self.item(value));
        let all = |values: Vec<Spanned<String>>| {
            values.into_iter().map(|value| self.item(value)).collect()
        };
        DraftRoute {
            origin,
            sni: all(route.sni),
            backends: all(route.backends),
            acme: text(route.acme),
            send_proxy: text(route.send_proxy),
            source: text(route.source),
            balance: text(route.balance),
            check: text(route.check),
            check_interval: text(route.check_interval),
            rise: route.rise.map(|value| self.item(value)),
            fall: route.fall.map(|value| self.item(value)),
            slow_start: text(route.slow_start),
            unknown: Vec::new(),
        }
    }

    fn limits(&self, limits: Limits) -> DraftLimits {
        let number = |value: Option<Spanned<i64>>| value.map(|value| self.item(value));
        let text = |value: Option<Spanned<String>>| value.map(|value| self.item(value));
        let networks = limits.backends_allowed.into_iter();
        DraftLimits {
            hello_bytes: number(limits.hello_bytes),
            dial_timeout: text(limits.dial_timeout),
            answer_timeout: text(limits.answer_timeout),
            max_connections: number(limits.max_connections),
            max_peeking: number(limits.max_peeking),
            per_source: number(limits.per_source),
            accept_rate: number(limits.accept_rate),
            idle_timeout: text(limits.idle_timeout),
            keepalive: text(limits.keepalive),
            user_timeout: text(limits.user_timeout),
            backends_allowed: networks.map(|value| self.item(value)).collect(),
        }
    }

    /// Turns what serde or the TOML parser says into a place and a remedy.
    fn shape(&self, error: &toml::de::Error) -> Problem {
        let message = error.message().trim_end();
        let origin = error.span().map(|span| self.at(span));
        let text = match remedy(message) {
            Some(remedy) => format!("{message}; {remedy}"),
            None => message.replace('\n', ", "),
        };
        let key = if origin.is_none() { self.path.display().to_string() } else { String::new() };
        Problem { origin, key, text }
    }
}

/// What to do about what serde says, for the three things it says most.
fn remedy(message: &str) -> Option<String> {
    if let Some(key) = message.strip_prefix("missing field ") {
        return Some(format!("add {key} to this section"));
    }
    if message.ends_with("expected a sequence") {
        return Some("put it in brackets, like [\"a.test\"]".into());
    }
    nearest_key(message).map(|nearest| format!("did you mean `{nearest}`?"))
}

/// `unknown field `x`, expected one of …`: the nearest key that exists, if one is near.
fn nearest_key(message: &str) -> Option<&str> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    let likeness = |key: &str| strsim::jaro(unknown, key);
    quoted.filter(|key| likeness(key) > 0.7).max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}
