//! The tables of the file and their keys, as serde reads them. Flags build the same types.
//!
//! The documentation of a field is its meaning in `docs/reference/configuration.md`, in the JSON
//! schema and in `--help`. `default` says what its absence means.

use std::fmt;
use std::mem;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use snisplit_common::balance::BalancePolicy;
use snisplit_common::decide::{AcmeBypass, AcmePolicy};
use snisplit_common::proxy_protocol::Version;
use snisplit_common::server_name::Pattern;

use super::backend_addr::BackendAddr;
use super::choices::{
    Challenge, Choices, DnsProviderKind, HealthCheckKind, HmacAlgorithm, HookChoice, SourceAddress,
    Starttls,
};
use super::defaults;
use super::located::{Located, Setting};
use super::options::{OptionKey, OptionTable, OptionText};
use super::value::{
    AbsolutePath, AlpnProtocol, ContactUrl, Count, EabHmac, HttpsUrl, InstanceName, NameServer,
    Parsed, ReadableFile, TsigSecret, Value as _,
};
use crate::engine::EngineChoice;
use crate::telemetry::access_log::AccessLogFormat;

/// The largest share of a back end.
const MAX_WEIGHT: u32 = 256;
/// The longest ClientHello that an operator may allow, in bytes.
const MAX_CLIENT_HELLO_BYTES: u32 = snisplit_common::limits::MAX_CLIENT_HELLO_LEN_CEILING as u32;

/// Configuration of an agent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
    /// Name of this agent among others of the host. It names the folder of the agent's BPF pins and
    /// the file `/run/snisplit/<instance>.json`. Takes effect at the next start.
    #[schemars(extend("default" = defaults::INSTANCE))]
    pub(super) instance: Option<Setting<InstanceName>>,
    /// Engine that moves the bytes of flows. An engine that was not loaded at the start cannot be
    /// chosen by a reload.
    #[schemars(extend("default" = EngineChoice::default().label()))]
    pub(super) engine: Option<Setting<EngineChoice>>,
    /// ACME validations that go to back ends, for routes with `acme = "auto"`.
    #[schemars(extend("default" = AcmeBypass::default().label()))]
    pub(super) acme_bypass: Option<Setting<AcmeBypass>>,
    /// Time that running connections may take to end after SIGTERM or SIGINT. The agent resets
    /// those that remain.
    #[schemars(extend("default" = duration(defaults::DRAIN_TIMEOUT)))]
    pub(super) drain_timeout: Option<Setting<Duration>>,
    /// File to append a line to for each connection, when it ends; `-` is standard output. SIGHUP
    /// reopens it. Takes effect at the next start.
    pub(super) access_log: Option<Setting<PathBuf>>,
    /// Format of a line of the access log. Takes effect at the next start.
    #[schemars(extend("default" = AccessLogFormat::default().label()))]
    pub(super) access_log_format: Option<Setting<AccessLogFormat>>,
    /// Name servers for host names of back ends and for DNS-01, with port 53 unless a port is given.
    /// If empty, those of /etc/resolv.conf.
    #[serde(default)]
    #[schemars(extend("default" = []))]
    pub(super) nameservers: Vec<Setting<NameServer>>,
    /// Addresses to accept TLS connections on; at least one.
    #[serde(default)]
    #[schemars(extend("x-required" = true))]
    pub(super) listener: Vec<Located<Listener>>,
    /// Names whose connections are forwarded without decryption. At least one `[[route]]` or
    /// `[[terminate]]` is needed.
    #[serde(default)]
    pub(super) route: Vec<Located<Route>>,
    /// Names whose TLS ends at the agent, with the plaintext back ends behind them.
    #[serde(default)]
    pub(super) terminate: Vec<Located<Terminate>>,
    /// How certificates are ordered. Needed by every `[[terminate]]` without `cert` and `key`.
    pub(super) acme: Option<Located<Acme>>,
    /// The port for HTTP-01 validations. Without this table there is none.
    pub(super) http: Option<Located<Http>>,
    /// Bounds on connections, sizes and times.
    #[serde(default)]
    pub(super) limits: Limits,
    /// The port for metrics and health probes.
    #[serde(default)]
    pub(super) admin: Admin,
    /// What the packet engine may use of the host, for `engine = "packet"`. Takes effect at the next
    /// start.
    #[serde(default)]
    pub(super) packet: Packet,
}

/// One address to accept on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    /// Address to accept TLS connections on. `[::]:PORT` stands for all addresses of the host, and
    /// includes IPv4 unless `0.0.0.0:PORT` is listed too.
    #[schemars(extend("x-required" = true))]
    pub(super) address: Option<Setting<SocketAddr>>,
    /// Time from accept to a complete ClientHello, with the PROXY header and STARTTLS before it. It
    /// also bounds the TLS handshake of a terminated connection.
    #[schemars(extend("default" = duration(defaults::CLIENT_HELLO_TIMEOUT)))]
    pub(super) client_hello_timeout: Option<Setting<Duration>>,
    /// Networks whose members must send a PROXY header, v1 or v2. All other peers must not.
    #[serde(default)]
    #[schemars(extend("default" = []))]
    pub(super) proxy_protocol_from: Vec<Setting<IpNet>>,
    /// Protocol that precedes TLS. For `postgres` the agent answers SSLRequest, and sends it to the
    /// back end.
    #[schemars(extend("default" = Option::<Starttls>::default().label()))]
    pub(super) starttls: Option<Setting<Option<Starttls>>>,
}

/// Declares a table whose keys are options of `--route` and `--terminate` too.
macro_rules! option_table {
    ($(#[$table_attr:meta])* $name:ident { $($(#[$attr:meta])* $key:ident: $type:ty,)* }) => {
        $(#[$table_attr])*
        #[derive(Debug, Default, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$attr])* pub(super) $key: $type,)*
        }

        impl OptionTable for $name {
            fn options() -> Vec<String> {
                let keys = [$(<$type as OptionKey>::options(plain(stringify!($key)))),*];
                keys.concat()
            }

            fn set_option(&mut self, path: &str, text: &OptionText) -> bool {
                let (key, rest) = path.split_once('.').unwrap_or((path, ""));
                $(if key == plain(stringify!($key)) {
                    return self.$key.set(rest, text);
                })*
                false
            }
        }
    };
}

/// The name of a field without the mark of a raw identifier.
fn plain(field: &str) -> &str {
    field.trim_start_matches("r#")
}

/// A table of names and back ends.
pub(super) trait ForwardingTable: OptionTable {
    /// Moves the keys out that `[[route]]` and `[[terminate]]` both have.
    fn take_forwarding(&mut self) -> Forwarding;
}

/// Declares a table of names and back ends with keys of its own.
macro_rules! forwarding_table {
    ($(#[$table_attr:meta])* $name:ident { $($own:tt)* }) => {
        forwarding_table! {
            @keys $(#[$table_attr])* $name { $($own)* }
            /// Names of the table: `a.test`, `*.a.test` (one label more), or `*` for all that no
            /// other owns, and for clients that send no name. A name has one owner over all
            /// `[[route]]` and `[[terminate]]`. `[[terminate]]` cannot have `*`.
            #[serde(default)]
            #[schemars(extend("x-required" = true))]
            sni: Vec<Setting<Pattern>>,
            /// Back ends. If one does not answer, the agent tries another.
            #[serde(default)]
            #[schemars(extend("x-required" = true))]
            backends: Vec<Located<Backend>>,
            /// PROXY header to send to the back end.
            #[schemars(extend("default" = Option::<Version>::default().label()))]
            send_proxy: Option<Setting<Option<Version>>>,
            /// Source address of connections to back ends.
            #[schemars(extend("default" = SourceAddress::default().label()))]
            source_address: Option<Setting<SourceAddress>>,
            /// How connections are balanced over the back ends.
            #[schemars(extend("default" = BalancePolicy::default().label()))]
            balance: Option<Setting<BalancePolicy>>,
            /// How the agent checks back ends. Without this table it does not.
            health_check: Option<Located<HealthCheck>>,
            /// Time in which a back end that came up grows from 10 % to its full weight.
            #[schemars(extend("default" = duration_or_off(defaults::OFF)))]
            slow_start: Option<Setting<Option<Duration>>>,
        }
    };
    (
        @keys $(#[$table_attr:meta])* $name:ident { $($own:tt)* }
        $($(#[$attr:meta])* $key:ident: $type:ty,)*
    ) => {
        option_table! {
            $(#[$table_attr])* $name { $($(#[$attr])* $key: $type,)* $($own)* }
        }

        impl ForwardingTable for $name {
            fn take_forwarding(&mut self) -> Forwarding {
                Forwarding { $($key: mem::take(&mut self.$key),)* }
            }
        }
    };
}

forwarding_table! {
    /// The keys that `[[route]]` and `[[terminate]]` both have.
    Forwarding {}
}

forwarding_table! {
    /// Names whose connections are forwarded without decryption.
    Route {
        /// Who answers ACME validations of these names.
        #[schemars(extend("default" = AcmePolicy::default().label()))]
        acme: Option<Setting<AcmePolicy>>,
        /// Plain-HTTP back ends for HTTP-01 validations of these names; the first that answers is
        /// used. See `[http]`.
        #[serde(default)]
        #[schemars(extend("default" = []))]
        http_backends: Vec<Located<Backend>>,
    }
}

forwarding_table! {
    /// Names whose TLS ends at the agent.
    Terminate {
        /// Challenge by which the CA validates the names. Wildcard names need `dns-01`. Excludes
        /// `cert` and `key`.
        #[schemars(extend("default" = Challenge::default().label()))]
        challenge: Option<Setting<Challenge>>,
        /// Certificate chain (PEM) to use instead of an ordered certificate. It must cover all names,
        /// and needs `key`. The agent reads it again when a file changes.
        cert: Option<Setting<ReadableFile>>,
        /// Private key (PEM) of `cert`.
        key: Option<Setting<ReadableFile>>,
        /// ALPN protocols to agree to, in order of preference.
        #[serde(default)]
        #[schemars(extend("default" = []))]
        alpn: Vec<Setting<AlpnProtocol>>,
    }
}

option_table! {
    /// Health check of the back ends of a table.
    HealthCheck {
        /// What a check does.
        #[schemars(extend("x-required" = true))]
        r#type: Option<Setting<Option<HealthCheckKind>>>,
        /// Time between two checks, with 10 % jitter. An answer may take the smaller of this and
        /// `limits.connect_timeout`.
        #[schemars(extend("default" = duration(defaults::HEALTH_CHECK_INTERVAL)))]
        interval: Option<Setting<Duration>>,
        /// Successful checks in a row that make a back end up.
        #[schemars(extend("default" = defaults::RISE))]
        rise: Option<Setting<Count<1>>>,
        /// Failed checks in a row that make a back end down.
        #[schemars(extend("default" = defaults::FALL))]
        fall: Option<Setting<Count<1>>>,
    }
}

/// A back end: its address as a string, or a table.
#[derive(Debug)]
pub(super) enum Backend {
    Address(Parsed<BackendAddr>),
    Table(BackendTable),
}

/// A back end as a table. A plain string stands for a table with `address` alone.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BackendTable {
    /// Where the back end is: `IP:PORT`, `[IPv6]:PORT`, `HOST:PORT` or `unix:/PATH`. The agent
    /// resolves a host name again when its TTL ends.
    #[schemars(extend("x-required" = true))]
    pub(super) address: Option<Setting<BackendAddr>>,
    /// Share of the connections beside the other back ends of the route. With 0 it gets connections
    /// only if no other back end answers.
    #[schemars(extend("default" = defaults::WEIGHT))]
    pub(super) weight: Option<Setting<Count<0, MAX_WEIGHT>>>,
}

impl Backend {
    /// `ADDRESS`, or `ADDRESS weight=N`.
    fn from_option(option: &OptionText) -> Located<Self> {
        let mut words = option.text.split_whitespace();
        let word = |text: &str| OptionText { text: text.to_owned(), ..option.clone() };
        let address = Some(word(words.next().unwrap_or_default()).setting());
        let weight = words.next_back().map(|last| match last.strip_prefix("weight=") {
            Some(weight) => word(weight).setting(),
            None => {
                let message = format!(
                    "\"{last}\" is no option of a back end; weight=N, 0 to {MAX_WEIGHT} (default \
                     {}), is one",
                    defaults::WEIGHT
                );
                Located { position: option.position.clone(), value: Parsed(Err(message)) }
            }
        });
        let table = Self::Table(BackendTable { address, weight });
        Located { position: option.position.clone(), value: table }
    }
}

impl OptionKey for Vec<Located<Backend>> {
    fn options(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    fn set(&mut self, rest: &str, text: &OptionText) -> bool {
        *self = text.split().iter().map(Backend::from_option).collect();
        rest.is_empty()
    }
}

impl OptionKey for Option<Located<HealthCheck>> {
    fn options(name: &str) -> Vec<String> {
        HealthCheck::options().iter().map(|key| format!("{name}.{key}")).collect()
    }

    fn set(&mut self, rest: &str, text: &OptionText) -> bool {
        let position = text.position.clone();
        let table = self.get_or_insert_with(|| Located { position, value: HealthCheck::default() });
        table.value.set_option(rest, text)
    }
}

/// Unlike an untagged enum, this keeps the positions of the values in the table.
impl<'de> Deserialize<'de> for Backend {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BackendVisitor;

        impl<'de> Visitor<'de> for BackendVisitor {
            type Value = Backend;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a back end: \"HOST:PORT\" or { address = \"HOST:PORT\", weight = N }")
            }

            fn visit_str<E>(self, text: &str) -> Result<Backend, E> {
                Ok(Backend::Address(Parsed(BackendAddr::parse(text))))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Backend, A::Error> {
                BackendTable::deserialize(MapAccessDeserializer::new(map)).map(Backend::Table)
            }
        }

        deserializer.deserialize_any(BackendVisitor)
    }
}

impl JsonSchema for Backend {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Backend".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (address, table) = (BackendAddr::schema(), BackendTable::json_schema(generator));
        json_schema!({ "title": "back end", "anyOf": [address, table] })
    }
}

/// How certificates are ordered (ACME, RFC 8555).
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Acme {
    /// Directory of the CA. Naming it agrees to the CA's terms of service.
    #[schemars(extend("x-required" = true))]
    pub(super) directory: Option<Setting<HttpsUrl>>,
    /// Contacts of the ACME account, such as `mailto:ops@example.com`.
    #[serde(default)]
    #[schemars(extend("default" = []))]
    pub(super) contact: Vec<Setting<ContactUrl>>,
    /// Root certificates (PEM) that verify the HTTPS of the CA's directory. Without it, those of the
    /// system.
    pub(super) ca_file: Option<Setting<ReadableFile>>,
    /// State directory: the account, orders and certificates. One agent at a time uses it.
    #[schemars(extend("default" = defaults::STATE_DIR))]
    pub(super) state_dir: Option<Setting<AbsolutePath>>,
    /// Certificate profile to ask for. Without it, the CA chooses.
    pub(super) profile: Option<Setting<String>>,
    /// Key identifier of external account binding (RFC 8555 §7.3.4). Needs `eab_hmac`.
    pub(super) eab_kid: Option<Setting<String>>,
    /// HMAC key of external account binding.
    pub(super) eab_hmac: Option<Setting<EabHmac>>,
    /// How TXT records are written. Needed by `challenge = "dns-01"`.
    pub(super) dns: Option<Located<Dns>>,
}

/// How the TXT records of DNS-01 are written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Dns {
    /// What writes the record.
    #[schemars(extend("x-required" = true))]
    pub(super) provider: Option<Setting<DnsProviderKind>>,
    /// Primary name server, which the agent sends updates to over TCP; port 53 unless a port is
    /// given. Required for `rfc2136`.
    pub(super) server: Option<Setting<NameServer>>,
    /// Zone to update. Without it, the agent finds the zone by its SOA record.
    pub(super) zone: Option<Setting<String>>,
    /// Name of the TSIG key (RFC 8945) that signs updates. Needs `tsig_secret`.
    pub(super) tsig_name: Option<Setting<String>>,
    /// Secret of the TSIG key.
    pub(super) tsig_secret: Option<Setting<TsigSecret>>,
    /// Algorithm of the TSIG key.
    #[schemars(extend("default" = HmacAlgorithm::default().label()))]
    pub(super) tsig_algorithm: Option<Setting<HmacAlgorithm>>,
    /// Program to call with three arguments: `present` or `cleanup`, the name of the record with a
    /// dot at its end, and the value. It may take 60 s. Required for `exec`.
    pub(super) program: Option<Setting<ReadableFile>>,
    /// Time within which all authoritative name servers must have the record.
    #[schemars(extend("default" = duration(defaults::PROPAGATION_TIMEOUT)))]
    pub(super) propagation_timeout: Option<Setting<Duration>>,
}

/// The port for HTTP-01 validations.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    /// Address for HTTP-01 validations (RFC 8555 §8.3). The owner of the name in `Host` answers. The agent
    /// redirects other requests to https (308) if a route names the host; else the status is 404.
    #[schemars(extend("x-required" = true))]
    pub(super) address: Option<Setting<SocketAddr>>,
}

/// The port for metrics and health probes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// Address of `/metrics` (OpenMetrics), `/healthz` and `/readyz`. Without it there is no such
    /// port. Takes effect at the next start.
    pub(super) address: Option<Setting<SocketAddr>>,
}

/// Bounds on connections, sizes and times.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Longest ClientHello message, without its 4-byte header.
    #[schemars(extend("default" = defaults::MAX_CLIENT_HELLO_BYTES, "x-unit" = "bytes"))]
    pub(super) max_client_hello_bytes: Option<Setting<Count<512, MAX_CLIENT_HELLO_BYTES>>>,
    /// Time for each attempt to connect to a back end.
    #[schemars(extend("default" = duration(defaults::CONNECT_TIMEOUT)))]
    pub(super) connect_timeout: Option<Setting<Duration>>,
    /// Time that a back end may be silent after the ClientHello, as long as another one is left to
    /// try.
    #[schemars(extend("default" = duration_or_off(defaults::OFF)))]
    pub(super) first_byte_timeout: Option<Setting<Option<Duration>>>,
    /// Concurrent connections.
    #[schemars(extend("default" = defaults::MAX_CONNECTIONS, "x-unit" = "connections"))]
    pub(super) max_connections: Option<Setting<Count<1>>>,
    /// Concurrent connections that have not sent a complete ClientHello.
    #[schemars(extend("default" = defaults::MAX_PENDING_HANDSHAKES, "x-unit" = "connections"))]
    pub(super) max_pending_handshakes: Option<Setting<Count<1>>>,
    /// Concurrent flows of one source: an IPv4 address or an IPv6 /64. ACME validations do not
    /// count.
    #[schemars(extend("default" = defaults::MAX_CONNECTIONS_PER_SOURCE, "x-unit" = "flows"))]
    pub(super) max_connections_per_source: Option<Setting<Count<1>>>,
    /// New connections per second, and the size of a burst; 0 is no limit.
    #[schemars(extend("default" = defaults::ACCEPT_RATE, "x-unit" = "connections per second"))]
    pub(super) accept_rate: Option<Setting<Count<0>>>,
    /// Time without a byte after which the agent resets a flow.
    #[schemars(extend("default" = duration_or_off(defaults::OFF)))]
    pub(super) idle_timeout: Option<Setting<Option<Duration>>>,
    /// Idle time before TCP keepalive probes to clients and back ends. For clients it takes effect
    /// when the agent opens the listener.
    #[schemars(extend("default" = duration_or_off(defaults::KEEPALIVE)))]
    pub(super) keepalive: Option<Setting<Option<Duration>>>,
    /// Time that sent data may stay unacknowledged (TCP_USER_TIMEOUT). With `off` the kernel decides.
    #[schemars(extend("default" = duration_or_off(defaults::OFF)))]
    pub(super) user_timeout: Option<Setting<Option<Duration>>>,
    /// Networks that back ends may be in, after resolution. If empty, back ends may be anywhere.
    #[serde(default)]
    #[schemars(extend("default" = []))]
    pub(super) backends_allowed: Vec<Setting<IpNet>>,
}

/// What the packet engine may use of the host.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Packet {
    /// Interfaces that its programs are attached to. If empty, all Ethernet interfaces with an
    /// address.
    #[serde(default)]
    #[schemars(extend("default" = []))]
    pub(super) interfaces: Vec<Setting<String>>,
    /// Source ports of connections to back ends: first and last, from 1024 on. Nothing else on the
    /// host may use them.
    #[schemars(extend("default" = port_range(defaults::PACKET_PORTS)))]
    pub(super) ports: Option<Setting<RangeInclusive<u16>>>,
    /// Attach point at an interface.
    #[schemars(extend("default" = HookChoice::default().label()))]
    pub(super) hook: Option<Setting<HookChoice>>,
    /// Whether to attach in drivers (XDP) too, where the driver supports it.
    #[schemars(extend("default" = defaults::PACKET_XDP))]
    pub(super) xdp: Option<Setting<bool>>,
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn duration_or_off(setting: Option<Duration>) -> String {
    setting.map_or_else(|| "off".into(), duration)
}

fn port_range(ports: RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}
