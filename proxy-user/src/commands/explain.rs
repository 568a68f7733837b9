//! `snisplit explain`: shows how the agent would handle a connection, and why. It calls [`decide`], as
//! the agent does.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use snisplit_common::client_hello::{ClientHello, ClientHelloParser, ParseStatus, Sni};
use snisplit_common::decide::{
    Action, CertificateLookup, Decision, ManagedName, NameClass, decide,
};
use snisplit_common::server_name::ServerName;

use crate::cli::ConnectionArgs;
use crate::config::Terminate;
use crate::config::terminate::CertificateSource;
use crate::config::{Config, Route};

/// Certificates of an agent that has obtained all of them and has no pending order.
struct AllCertificatesReady<'c>(&'c Config);

impl<'c> CertificateLookup for AllCertificatesReady<'c> {
    type Certificate = &'c Terminate;

    fn pending_challenge(&self, _: &ServerName) -> Option<&'c Terminate> {
        None
    }

    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<&'c Terminate>> {
        let owner = self.0.terminates.lookup(Some(name))?;
        Some(ManagedName { kind: owner.kind, certificate: Some(owner.route) })
    }
}

type ConfigDecision<'c> = Decision<'c, Route, &'c Terminate>;

/// Explains how a connection would be handled. Each line has one fact.
///
/// # Errors
///
/// The file of `--client-hello` cannot be read or holds no ClientHello.
pub fn explain(config: &Config, args: &ConnectionArgs) -> Result<String> {
    let mut out = String::new();
    let hello = match &args.client_hello {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
            let hello = parse_client_hello(config, &bytes)?;
            write_line(&mut out, "hello", &describe_client_hello(&hello, bytes.len()));
            hello
        }
        None => client_hello_from_args(args),
    };
    write_line(&mut out, "server name", &describe_server_name(&hello.sni));
    write_line(&mut out, "ALPN", &describe_alpn(&hello));
    let decision =
        decide(&hello, &config.routes, config.acme_bypass, &AllCertificatesReady(config));
    write_line(&mut out, "route", &describe_route(config, &hello, &decision));
    write_line(&mut out, "decision", &describe_action(&decision));
    write_line(&mut out, "because", decision.reason.description());
    if matches!(decision.action, Action::Forward(_)) {
        write_line(&mut out, "engine", config.engine.description());
    }
    if !hello.is_acme_validation() {
        let validation = ClientHello { alpn: vec![b"acme-tls/1".to_vec()], ..hello };
        let decision =
            decide(&validation, &config.routes, config.acme_bypass, &AllCertificatesReady(config));
        let text = format!("{}: {}", describe_action(&decision), decision.reason.description());
        write_line(&mut out, "ACME validation", &text);
    }
    Ok(out)
}

fn write_line(out: &mut String, title: &str, text: &str) {
    let _infallible = writeln!(out, "{title:<16} {text}");
}

fn parse_client_hello(config: &Config, bytes: &[u8]) -> Result<ClientHello> {
    match ClientHelloParser::new(config.limits.max_client_hello_bytes).parse(bytes) {
        ParseStatus::Complete(hello) => Ok(*hello),
        ParseStatus::Incomplete { needed } => bail!(
            "the ClientHello is incomplete: the file has {} of at least {needed} bytes; the agent \
             would wait for the rest, and then reject with alert handshake_failure",
            bytes.len()
        ),
        ParseStatus::Invalid(error) => {
            bail!("no ClientHello ({}); rejected with alert {}", error.label(), error.alert())
        }
    }
}

fn client_hello_from_args(args: &ConnectionArgs) -> ClientHello {
    ClientHello {
        sni: match &args.sni {
            Some(name) => ServerName::parse(name.as_bytes()).map_or_else(Sni::Invalid, Sni::Name),
            None => Sni::Absent,
        },
        alpn: args.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect(),
        versions: Vec::new(),
        early_data: false,
        ech: false,
        wire_len: 0,
        records: 0,
    }
}

fn describe_client_hello(hello: &ClientHello, bytes: usize) -> String {
    let versions: Vec<_> = hello.versions.iter().filter_map(|v| tls_version_name(*v)).collect();
    let mut text =
        format!("{} bytes in {} record(s), {}", hello.wire_len, hello.records, versions.join(", "));
    if hello.ech {
        text += ", ECH (or GREASE that looks like it)";
    }
    if hello.early_data {
        text += ", early data offered";
    }
    if bytes > hello.wire_len {
        let _infallible = write!(text, ", {} bytes behind it", bytes - hello.wire_len);
    }
    text
}

/// Returns the name of a TLS version; `None` for GREASE (RFC 8701).
fn tls_version_name(code: u16) -> Option<String> {
    match code {
        0x0301 => Some("TLS 1.0".into()),
        0x0302 => Some("TLS 1.1".into()),
        0x0303 => Some("TLS 1.2".into()),
        0x0304 => Some("TLS 1.3".into()),
        grease if grease & 0x0f0f == 0x0a0a => None,
        other => Some(format!("version {other:#06x}")),
    }
}

fn describe_server_name(sni: &Sni) -> String {
    match sni {
        Sni::Name(name) => name.to_string(),
        Sni::Absent => "none".into(),
        Sni::Invalid(error) => format!("none: what the client sends {error}"),
    }
}

fn describe_alpn(hello: &ClientHello) -> String {
    let all: Vec<_> = hello.alpn.iter().map(|p| p.escape_ascii().to_string()).collect();
    match (hello.is_acme_validation(), all.is_empty()) {
        (true, _) => "acme-tls/1 and nothing else: an ACME validation (RFC 8737)".into(),
        (false, true) => "none".into(),
        (false, false) => all.join(", "),
    }
}

fn describe_route(config: &Config, hello: &ClientHello, decision: &ConfigDecision<'_>) -> String {
    let name = match &hello.sni {
        Sni::Name(name) => Some(name),
        Sni::Absent | Sni::Invalid(_) => None,
    };
    let found = match decision.name_class {
        NameClass::Routed(_) => config.routes.lookup(name).map(|owner| (owner.kind, owner.route)),
        NameClass::Managed => {
            let owner = config.terminates.lookup(name);
            owner.map(|owner| (owner.kind, &owner.route.route))
        }
        NameClass::Nameless | NameClass::Unrouted => None,
    };
    match found {
        Some((kind, route)) => {
            format!("{} ({} match), {}", route.label, kind.label().replace('_', "-"), route.origin)
        }
        None => "none".into(),
    }
}

fn describe_action(decision: &ConfigDecision<'_>) -> String {
    let list_backends = |route: &Route| {
        let backends: Vec<_> = route.backends.iter().map(ToString::to_string).collect();
        backends.join(" or ")
    };
    match &decision.action {
        Action::Terminate(terminate) => {
            let certificate = match &terminate.certificate {
                CertificateSource::Acme(challenge) => format!("ordered by {}", challenge.label()),
                CertificateSource::Files { cert, .. } => format!("in {}", cert.display()),
            };
            let backends = list_backends(&terminate.route);
            format!("terminate with the certificate {certificate}, plaintext to {backends}")
        }
        Action::Reject(alert) => format!("reject with alert {alert}"),
        Action::Forward(route) => format!("forward to {}", list_backends(route)),
    }
}
