//! Values of a fixed set: their labels, for the file, for `--help` and completions, and for the
//! reference.

use snisplit_common::balance::BalancePolicy;
use snisplit_common::decide::{AcmeBypass, AcmePolicy};
use snisplit_common::proxy_protocol::Version;

use crate::engine::{EngineChoice, EngineKind};
use crate::telemetry::access_log::AccessLogFormat;

/// A protocol that precedes TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starttls {
    /// PostgreSQL's `SSLRequest`.
    Postgres,
}

/// The source address that a back end sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceAddress {
    /// The agent's.
    #[default]
    Local,
    /// The client's (IP_TRANSPARENT); `snisplit net` sets up the routing of the replies.
    Client,
}

/// What a health check does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HealthCheckKind {
    /// Opens a TCP connection.
    Tcp,
    /// Does a TLS handshake with the first exact name of the route.
    Tls,
}

/// How a CA validates that a name belongs to this agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Challenge {
    /// `tls-alpn-01` (RFC 8737), on the listeners.
    #[default]
    TlsAlpn01,
    /// `http-01` (RFC 8555 §8.3), on `[http]`.
    Http01,
    /// `dns-01` (RFC 8555 §8.4), by `[acme.dns]`.
    Dns01,
}

impl Challenge {
    /// The name in the IANA registry of ACME validation methods.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01 => "http-01",
            Self::Dns01 => "dns-01",
        }
    }
}

/// What writes DNS records (`acme.dns.provider`), without its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsProviderKind {
    /// A dynamic update.
    Rfc2136,
    /// A program.
    Exec,
}

/// Algorithm of a TSIG key (RFC 8945 §6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HmacAlgorithm {
    /// `hmac-sha256`
    #[default]
    HmacSha256,
    /// `hmac-sha384`
    HmacSha384,
    /// `hmac-sha512`
    HmacSha512,
}

/// Attach point at an interface (`packet.hook`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HookChoice {
    /// The best that the running kernel supports. The engine finds out, not the configuration.
    #[default]
    Auto,
    /// tcx, since Linux 6.6.
    Tcx,
    /// The clsact queueing discipline.
    Clsact,
}

/// One value of a set.
pub(super) struct Choice<T> {
    pub(super) label: &'static str,
    pub(super) value: T,
    pub(super) meaning: &'static str,
}

/// A type whose values are a fixed set.
///
/// This is not `clap::ValueEnum`: several of these types are foreign to this crate, or an `Option`
/// whose `None` is `off`.
pub(super) trait Choices: Clone + PartialEq + Sized + 'static {
    /// All values, the default first.
    const CHOICES: &'static [Choice<Self>];

    /// The label of this value.
    fn label(&self) -> &'static str {
        let found = Self::CHOICES.iter().find(|choice| choice.value == *self);
        found.map_or_else(Default::default, |choice| choice.label)
    }
}

const fn choice<T>(label: &'static str, value: T, meaning: &'static str) -> Choice<T> {
    Choice { label, value, meaning }
}

impl Choices for EngineChoice {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("auto", Self::Auto, "for each flow the fastest engine that works on this kernel"),
        choice("packet", Self::Only(EngineKind::Packet), "rewrite packets at the interfaces"),
        choice("sockmap", Self::Only(EngineKind::Sockmap), "redirect between sockets with eBPF"),
        choice("splice", Self::Only(EngineKind::Splice), "move bytes through a pipe in the kernel"),
        choice("copy", Self::Only(EngineKind::Copy), "read and write in the agent"),
    ];
}

impl Choices for AcmeBypass {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("owned", Self::Owned, "those of names that a route owns, but not by `*`"),
        choice("never", Self::Never, "none"),
        choice("always", Self::Always, "those of catch-all routes too"),
    ];
}

impl Choices for AcmePolicy {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("auto", Self::Auto, "as `acme_bypass` says"),
        choice("backend", Self::Backend, "always the back end"),
        choice("local", Self::Local, "only an order of this agent"),
        choice("reject", Self::Reject, "nobody"),
    ];
}

impl Choices for AccessLogFormat {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("json", Self::Json, "a JSON object"),
        choice("text", Self::Text, "`key=value` pairs"),
    ];
}

impl Choices for Option<Starttls> {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("off", None, "TLS from the first byte"),
        choice("postgres", Some(Starttls::Postgres), "PostgreSQL's SSLRequest"),
    ];
}

impl Choices for Option<Version> {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("off", None, "no header"),
        choice("v1", Some(Version::V1), "text, addresses only"),
        choice("v2", Some(Version::V2), "binary, with the server name, ALPN and CRC32c"),
    ];
}

impl Choices for SourceAddress {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("local", Self::Local, "the agent's"),
        choice(
            "client",
            Self::Client,
            "the client's (IP_TRANSPARENT); needs `snisplit net apply`, and back ends by IP address \
             on other hosts",
        ),
    ];
}

impl Choices for BalancePolicy {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("round_robin", Self::RoundRobin, "in turn, by weight"),
        choice("least_connections", Self::LeastConnections, "the fewest connections per weight"),
        choice(
            "source_hash",
            Self::SourceHash,
            "the same back end for the same client address (rendezvous hashing)",
        ),
    ];
}

impl Choices for Option<HealthCheckKind> {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("off", None, "no check"),
        choice("tcp", Some(HealthCheckKind::Tcp), "open a TCP connection"),
        choice(
            "tls",
            Some(HealthCheckKind::Tls),
            "do a TLS handshake with the first exact name, certificate not verified; not in \
             `[[terminate]]`",
        ),
    ];
}

impl Choices for Challenge {
    const CHOICES: &'static [Choice<Self>] = &[
        choice(Self::TlsAlpn01.label(), Self::TlsAlpn01, "RFC 8737, on the listeners"),
        choice(Self::Http01.label(), Self::Http01, "RFC 8555 §8.3; needs `[http]`"),
        choice(Self::Dns01.label(), Self::Dns01, "RFC 8555 §8.4; needs `[acme.dns]`"),
    ];
}

impl Choices for DnsProviderKind {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("rfc2136", Self::Rfc2136, "a dynamic update (RFC 2136)"),
        choice("exec", Self::Exec, "a program"),
    ];
}

impl Choices for HmacAlgorithm {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("hmac-sha256", Self::HmacSha256, "HMAC with SHA-256"),
        choice("hmac-sha384", Self::HmacSha384, "HMAC with SHA-384"),
        choice("hmac-sha512", Self::HmacSha512, "HMAC with SHA-512"),
    ];
}

impl Choices for HookChoice {
    const CHOICES: &'static [Choice<Self>] = &[
        choice("auto", Self::Auto, "tcx since Linux 6.6, else clsact"),
        choice("tcx", Self::Tcx, "in front of all filters; replaced without a gap"),
        choice("clsact", Self::Clsact, "a filter of the clsact queueing discipline"),
    ];
}
