//! The sections of the file and their keys, as serde reads them.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub(super) instance: Option<Spanned<String>>,
    pub(super) engine: Option<Spanned<String>>,
    pub(super) acme_bypass: Option<Spanned<String>>,
    pub(super) drain_timeout: Option<Spanned<String>>,
    pub(super) access_log: Option<Spanned<String>>,
    pub(super) access_log_format: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) nameservers: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) listener: Vec<Spanned<Listener>>,
    #[serde(default)]
    pub(super) route: Vec<Spanned<Route>>,
    #[serde(default)]
    pub(super) terminate: Vec<Spanned<Terminate>>,
    pub(super) acme: Option<Spanned<Acme>>,
    pub(super) http: Option<Http>,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) admin: Admin,
    #[serde(default)]
    pub(super) packet: Packet,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Packet {
    #[serde(default)]
    pub(super) interfaces: Vec<Spanned<String>>,
    pub(super) ports: Option<Spanned<String>>,
    pub(super) hook: Option<Spanned<String>>,
    pub(super) xdp: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    pub(super) address: Spanned<String>,
    pub(super) client_hello_timeout: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) proxy_protocol_from: Vec<Spanned<String>>,
    pub(super) starttls: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub(super) sni: Vec<Spanned<String>>,
    pub(super) backends: Vec<Spanned<Backend>>,
    pub(super) acme: Option<Spanned<String>>,
    pub(super) send_proxy: Option<Spanned<String>>,
    pub(super) source_address: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) http_backends: Vec<Spanned<Backend>>,
    pub(super) balance: Option<Spanned<String>>,
    pub(super) health_check: Option<HealthCheck>,
    pub(super) slow_start: Option<Spanned<String>>,
}

/// A back end: its address as a string, or a table.
pub(super) enum Backend {
    Address(String),
    Table(BackendTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackendTable {
    pub(super) address: Spanned<String>,
    pub(super) weight: Option<Spanned<i64>>,
}

/// Unlike an untagged enum, keeps the spans of the values in the table.
impl<'de> Deserialize<'de> for Backend {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BackendVisitor;

        impl<'de> Visitor<'de> for BackendVisitor {
            type Value = Backend;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a back end: \"HOST:PORT\" or { address = \"HOST:PORT\", weight = N }")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Backend, E> {
                Ok(Backend::Address(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Backend, A::Error> {
                BackendTable::deserialize(MapAccessDeserializer::new(map)).map(Backend::Table)
            }
        }

        deserializer.deserialize_any(BackendVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HealthCheck {
    #[serde(rename = "type")]
    pub(super) kind: Spanned<String>,
    pub(super) interval: Option<Spanned<String>>,
    pub(super) rise: Option<Spanned<i64>>,
    pub(super) fall: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) max_client_hello_bytes: Option<Spanned<i64>>,
    pub(super) connect_timeout: Option<Spanned<String>>,
    pub(super) first_byte_timeout: Option<Spanned<String>>,
    pub(super) max_connections: Option<Spanned<i64>>,
    pub(super) max_pending_handshakes: Option<Spanned<i64>>,
    pub(super) max_connections_per_source: Option<Spanned<i64>>,
    pub(super) accept_rate: Option<Spanned<i64>>,
    pub(super) idle_timeout: Option<Spanned<String>>,
    pub(super) keepalive: Option<Spanned<String>>,
    pub(super) user_timeout: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) backends_allowed: Vec<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) address: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Terminate {
    pub(super) sni: Vec<Spanned<String>>,
    pub(super) backends: Vec<Spanned<Backend>>,
    pub(super) challenge: Option<Spanned<String>>,
    pub(super) cert: Option<Spanned<String>>,
    pub(super) key: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) alpn: Vec<Spanned<String>>,
    pub(super) send_proxy: Option<Spanned<String>>,
    pub(super) source_address: Option<Spanned<String>>,
    pub(super) balance: Option<Spanned<String>>,
    pub(super) health_check: Option<HealthCheck>,
    pub(super) slow_start: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    pub(super) address: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Acme {
    pub(super) directory: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) contact: Vec<Spanned<String>>,
    pub(super) ca_file: Option<Spanned<String>>,
    pub(super) state_dir: Option<Spanned<String>>,
    pub(super) profile: Option<Spanned<String>>,
    pub(super) eab_kid: Option<Spanned<String>>,
    pub(super) eab_hmac: Option<Spanned<String>>,
    pub(super) dns: Option<Spanned<Dns>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dns {
    pub(super) provider: Spanned<String>,
    pub(super) server: Option<Spanned<String>>,
    pub(super) zone: Option<Spanned<String>>,
    pub(super) tsig_name: Option<Spanned<String>>,
    pub(super) tsig_secret: Option<Spanned<String>>,
    pub(super) tsig_algorithm: Option<Spanned<String>>,
    pub(super) program: Option<Spanned<String>>,
    pub(super) propagation_timeout: Option<Spanned<String>>,
}
