//! The TOML file: its shape and where each value stands. Meaning comes later, in `build`.

use std::fs;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;

use super::Origin;
use super::acme::{DraftAcme, DraftDns};
use super::build::{Draft, DraftListener, Item};
use super::limits::DraftLimits;
use super::packet::DraftPacket;
use super::problem::{Problem, Problems};
use super::routes::DraftRoute;
use super::terminate::DraftTerminate;

mod shape;

use shape::{Acme, Dns, File, Limits, Listener, Route, Terminate};

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

    fn some<T>(&self, value: Option<Spanned<T>>) -> Option<Item<T>> {
        value.map(|value| self.item(value))
    }

    fn all<T>(&self, values: Vec<Spanned<T>>) -> Vec<Item<T>> {
        values.into_iter().map(|value| self.item(value)).collect()
    }

    fn draft(&self, file: File) -> Draft {
        let listeners = file.listener.into_iter().map(Spanned::into_inner);
        Draft {
            instance: self.some(file.instance),
            engine: self.some(file.engine),
            acme_bypass: self.some(file.acme_bypass),
            drain: self.some(file.drain),
            access_log: self.some(file.access_log),
            access_log_format: self.some(file.access_log_format),
            nameservers: self.all(file.nameservers),
            listeners: listeners.map(|listener| self.listener(listener)).collect(),
            routes: file.route.into_iter().map(|route| self.route(route)).collect(),
            terminates: file.terminate.into_iter().map(|one| self.terminate(one)).collect(),
            acme: file.acme.map(|acme| self.acme(acme)),
            http: file.http.map(|http| self.item(http.address)),
            limits: self.limits(file.limits),
            admin: self.some(file.admin.address),
            packet: DraftPacket {
                interfaces: self.all(file.packet.interfaces),
                ports: self.some(file.packet.ports),
                hook: self.some(file.packet.hook),
                xdp: self.some(file.packet.xdp),
            },
            hello_timeout: None,
        }
    }

    fn listener(&self, listener: Listener) -> DraftListener {
        DraftListener {
            address: self.item(listener.address),
            hello_timeout: self.some(listener.hello_timeout),
            proxy_protocol_from: self.all(listener.proxy_protocol_from),
            starttls: self.some(listener.starttls),
        }
    }

    fn route(&self, route: Spanned<Route>) -> DraftRoute {
        let origin = self.at(route.span());
        let route = route.into_inner();
        DraftRoute {
            sni: self.all(route.sni),
            backends: self.all(route.backends),
            http_backends: self.all(route.http_backends),
            acme: self.some(route.acme),
            send_proxy: self.some(route.send_proxy),
            source: self.some(route.source),
            balance: self.some(route.balance),
            check: self.some(route.check),
            check_interval: self.some(route.check_interval),
            rise: self.some(route.rise),
            fall: self.some(route.fall),
            slow_start: self.some(route.slow_start),
            ..DraftRoute::at(origin, "route")
        }
    }

    fn terminate(&self, one: Spanned<Terminate>) -> DraftTerminate {
        let origin = self.at(one.span());
        let one = one.into_inner();
        let route = DraftRoute {
            sni: self.all(one.sni),
            backends: self.all(one.backends),
            send_proxy: self.some(one.send_proxy),
            source: self.some(one.source),
            balance: self.some(one.balance),
            check: self.some(one.check),
            check_interval: self.some(one.check_interval),
            rise: self.some(one.rise),
            fall: self.some(one.fall),
            slow_start: self.some(one.slow_start),
            ..DraftRoute::at(origin, "terminate")
        };
        DraftTerminate {
            route,
            challenge: self.some(one.challenge),
            cert: self.some(one.cert),
            key: self.some(one.key),
            alpn: self.all(one.alpn),
        }
    }

    fn acme(&self, acme: Spanned<Acme>) -> DraftAcme {
        let origin = self.at(acme.span());
        let acme = acme.into_inner();
        DraftAcme {
            origin: Some(origin),
            directory: self.some(acme.directory),
            contact: self.all(acme.contact),
            ca_file: self.some(acme.ca_file),
            state_dir: self.some(acme.state_dir),
            profile: self.some(acme.profile),
            eab_kid: self.some(acme.eab_kid),
            eab_hmac: self.some(acme.eab_hmac),
            dns: acme.dns.map(|dns| self.dns(dns.into_inner())),
        }
    }

    fn dns(&self, dns: Dns) -> DraftDns {
        DraftDns {
            provider: self.item(dns.provider),
            server: self.some(dns.server),
            zone: self.some(dns.zone),
            tsig_name: self.some(dns.tsig_name),
            tsig_secret: self.some(dns.tsig_secret),
            tsig_algorithm: self.some(dns.tsig_algorithm),
            program: self.some(dns.program),
            propagation_timeout: self.some(dns.propagation_timeout),
        }
    }

    fn limits(&self, limits: Limits) -> DraftLimits {
        DraftLimits {
            hello_bytes: self.some(limits.hello_bytes),
            dial_timeout: self.some(limits.dial_timeout),
            answer_timeout: self.some(limits.answer_timeout),
            max_connections: self.some(limits.max_connections),
            max_peeking: self.some(limits.max_peeking),
            per_source: self.some(limits.per_source),
            accept_rate: self.some(limits.accept_rate),
            idle_timeout: self.some(limits.idle_timeout),
            keepalive: self.some(limits.keepalive),
            user_timeout: self.some(limits.user_timeout),
            backends_allowed: self.all(limits.backends_allowed),
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
