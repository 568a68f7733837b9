//! The TOML file: its shape and where each value stands. Meaning comes later, in `build`.

use std::fs;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;

use super::Origin;
use super::acme::{DraftAcme, DraftDns};
use super::diagnostic::{ConfigErrors, Diagnostic};
use super::limits::DraftLimits;
use super::packet::DraftPacket;
use super::route_table::{DraftBackend, DraftHealthCheck, DraftRoute};
use super::terminate::DraftTerminate;
use super::validate::{Draft, DraftListener, Located};

mod schema;

use schema::{Acme, Backend, ConfigFile, Dns, HealthCheck, Limits, Listener, Route, Terminate};

/// Reads a file; a fault in its syntax or shape is one problem, since nothing behind it is certain.
pub(super) fn read(path: &Path) -> Result<Draft, ConfigErrors> {
    let text = fs::read_to_string(path).map_err(|error| {
        let text = format!("cannot be read: {error}");
        ConfigErrors(vec![Diagnostic::without_origin(&path.display().to_string(), text)])
    })?;
    let source = SourceFile { path, text: &text };
    let file: ConfigFile = toml::from_str(&text)
        .map_err(|error| ConfigErrors(vec![source.syntax_diagnostic(&error)]))?;
    Ok(source.draft(file))
}

struct SourceFile<'a> {
    path: &'a Path,
    text: &'a str,
}

impl SourceFile<'_> {
    fn origin_at(&self, span: Range<usize>) -> Origin {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        Origin::File { path: self.path.into(), line }
    }

    fn locate<T>(&self, value: Spanned<T>) -> Located<T> {
        Located { origin: self.origin_at(value.span()), value: value.into_inner() }
    }

    fn locate_optional<T>(&self, value: Option<Spanned<T>>) -> Option<Located<T>> {
        value.map(|value| self.locate(value))
    }

    fn locate_all<T>(&self, values: Vec<Spanned<T>>) -> Vec<Located<T>> {
        values.into_iter().map(|value| self.locate(value)).collect()
    }

    fn draft(&self, file: ConfigFile) -> Draft {
        let listeners = file.listener.into_iter().map(Spanned::into_inner);
        Draft {
            instance: self.locate_optional(file.instance),
            engine: self.locate_optional(file.engine),
            acme_bypass: self.locate_optional(file.acme_bypass),
            drain_timeout: self.locate_optional(file.drain_timeout),
            access_log: self.locate_optional(file.access_log),
            access_log_format: self.locate_optional(file.access_log_format),
            nameservers: self.locate_all(file.nameservers),
            listeners: listeners.map(|listener| self.listener(listener)).collect(),
            routes: file.route.into_iter().map(|route| self.route(route)).collect(),
            terminates: file.terminate.into_iter().map(|one| self.terminate(one)).collect(),
            acme: file.acme.map(|acme| self.acme(acme)),
            http: file.http.map(|http| self.locate(http.address)),
            limits: self.limits(file.limits),
            admin: self.locate_optional(file.admin.address),
            packet: DraftPacket {
                interfaces: self.locate_all(file.packet.interfaces),
                ports: self.locate_optional(file.packet.ports),
                hook: self.locate_optional(file.packet.hook),
                xdp: self.locate_optional(file.packet.xdp),
            },
            client_hello_timeout: None,
        }
    }

    fn listener(&self, listener: Listener) -> DraftListener {
        DraftListener {
            address: self.locate(listener.address),
            client_hello_timeout: self.locate_optional(listener.client_hello_timeout),
            proxy_protocol_from: self.locate_all(listener.proxy_protocol_from),
            starttls: self.locate_optional(listener.starttls),
        }
    }

    fn route(&self, route: Spanned<Route>) -> DraftRoute {
        let origin = self.origin_at(route.span());
        let route = route.into_inner();
        DraftRoute {
            sni: self.locate_all(route.sni),
            backends: self.backends(route.backends),
            http_backends: self.backends(route.http_backends),
            acme: self.locate_optional(route.acme),
            send_proxy: self.locate_optional(route.send_proxy),
            source_address: self.locate_optional(route.source_address),
            balance: self.locate_optional(route.balance),
            health_check: self.health_check(route.health_check),
            slow_start: self.locate_optional(route.slow_start),
            ..DraftRoute::empty(origin, "route")
        }
    }

    fn terminate(&self, one: Spanned<Terminate>) -> DraftTerminate {
        let origin = self.origin_at(one.span());
        let one = one.into_inner();
        let route = DraftRoute {
            sni: self.locate_all(one.sni),
            backends: self.backends(one.backends),
            send_proxy: self.locate_optional(one.send_proxy),
            source_address: self.locate_optional(one.source_address),
            balance: self.locate_optional(one.balance),
            health_check: self.health_check(one.health_check),
            slow_start: self.locate_optional(one.slow_start),
            ..DraftRoute::empty(origin, "terminate")
        };
        DraftTerminate {
            route,
            challenge: self.locate_optional(one.challenge),
            cert: self.locate_optional(one.cert),
            key: self.locate_optional(one.key),
            alpn: self.locate_all(one.alpn),
        }
    }

    fn backends(&self, backends: Vec<Spanned<Backend>>) -> Vec<DraftBackend> {
        let draft = |backend: Spanned<Backend>| {
            let origin = self.origin_at(backend.span());
            match backend.into_inner() {
                Backend::Address(value) => {
                    DraftBackend::Keys { address: Located { origin, value }, weight: None }
                }
                Backend::Table(table) => DraftBackend::Keys {
                    address: self.locate(table.address),
                    weight: self.locate_optional(table.weight),
                },
            }
        };
        backends.into_iter().map(draft).collect()
    }

    fn health_check(&self, check: Option<HealthCheck>) -> DraftHealthCheck {
        let Some(check) = check else { return DraftHealthCheck::default() };
        DraftHealthCheck {
            kind: Some(self.locate(check.kind)),
            interval: self.locate_optional(check.interval),
            rise: self.locate_optional(check.rise),
            fall: self.locate_optional(check.fall),
        }
    }

    fn acme(&self, acme: Spanned<Acme>) -> DraftAcme {
        let origin = self.origin_at(acme.span());
        let acme = acme.into_inner();
        DraftAcme {
            origin: Some(origin),
            directory: self.locate_optional(acme.directory),
            contact: self.locate_all(acme.contact),
            ca_file: self.locate_optional(acme.ca_file),
            state_dir: self.locate_optional(acme.state_dir),
            profile: self.locate_optional(acme.profile),
            eab_kid: self.locate_optional(acme.eab_kid),
            eab_hmac: self.locate_optional(acme.eab_hmac),
            dns: acme.dns.map(|dns| self.dns(dns.into_inner())),
        }
    }

    fn dns(&self, dns: Dns) -> DraftDns {
        DraftDns {
            provider: self.locate(dns.provider),
            server: self.locate_optional(dns.server),
            zone: self.locate_optional(dns.zone),
            tsig_name: self.locate_optional(dns.tsig_name),
            tsig_secret: self.locate_optional(dns.tsig_secret),
            tsig_algorithm: self.locate_optional(dns.tsig_algorithm),
            program: self.locate_optional(dns.program),
            propagation_timeout: self.locate_optional(dns.propagation_timeout),
        }
    }

    fn limits(&self, limits: Limits) -> DraftLimits {
        DraftLimits {
            max_client_hello_bytes: self.locate_optional(limits.max_client_hello_bytes),
            connect_timeout: self.locate_optional(limits.connect_timeout),
            first_byte_timeout: self.locate_optional(limits.first_byte_timeout),
            max_connections: self.locate_optional(limits.max_connections),
            max_pending_handshakes: self.locate_optional(limits.max_pending_handshakes),
            max_connections_per_source: self.locate_optional(limits.max_connections_per_source),
            accept_rate: self.locate_optional(limits.accept_rate),
            idle_timeout: self.locate_optional(limits.idle_timeout),
            keepalive: self.locate_optional(limits.keepalive),
            user_timeout: self.locate_optional(limits.user_timeout),
            backends_allowed: self.locate_all(limits.backends_allowed),
        }
    }

    /// Turns what serde or the TOML parser says into a place and a remedy.
    fn syntax_diagnostic(&self, error: &toml::de::Error) -> Diagnostic {
        let message = error.message().trim_end();
        let origin = error.span().map(|span| self.origin_at(span));
        let text = match remedy(message) {
            Some(remedy) if remedy.starts_with("it is") => {
                let unknown = unknown_key(message).unwrap_or_default();
                format!("unknown key `{unknown}`; {remedy}")
            }
            Some(remedy) => format!("{message}; {remedy}"),
            None => message.replace('\n', ", "),
        };
        let key = if origin.is_none() { self.path.display().to_string() } else { String::new() };
        Diagnostic { origin, key, message: text }
    }
}

/// Keys of snisplit before its first release, and the keys that replaced them.
const RENAMED_KEYS: [(&str, &str); 12] = [
    ("answer_timeout", "first_byte_timeout"),
    ("check", "health_check = { type = \"…\" }"),
    ("check_interval", "health_check = { interval = \"…\" }"),
    ("dial_timeout", "connect_timeout"),
    ("drain", "drain_timeout"),
    ("fall", "health_check = { fall = N }"),
    ("hello_bytes", "max_client_hello_bytes"),
    ("hello_timeout", "client_hello_timeout"),
    ("max_peeking", "max_pending_handshakes"),
    ("per_source", "max_connections_per_source"),
    ("rise", "health_check = { rise = N }"),
    ("source", "source_address"),
];

/// What to do about what serde says, for the three things it says most.
fn remedy(message: &str) -> Option<String> {
    if let Some(key) = message.strip_prefix("missing field ") {
        return Some(format!("add {key} to this section"));
    }
    if message.ends_with("expected a sequence") {
        return Some("put it in brackets, like [\"a.test\"]".into());
    }
    if let Some(unknown) = unknown_key(message)
        && let Some((_, new)) = RENAMED_KEYS.into_iter().find(|(old, _)| *old == unknown)
    {
        return Some(format!("it is `{new}`"));
    }
    nearest_key(message).map(|nearest| format!("did you mean `{nearest}`?"))
}

fn unknown_key(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

/// `unknown field `x`, expected one of …`: the nearest key that exists, if one is near.
fn nearest_key(message: &str) -> Option<&str> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    let likeness = |key: &str| strsim::jaro(unknown, key);
    quoted.filter(|key| likeness(key) > 0.7).max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}
