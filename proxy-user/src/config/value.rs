//! Types of single values: how each is read from text, and how the reference names it.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use snisplit_common::server_name::{Pattern, ServerName};

use super::backend_addr::BackendAddr;
use super::choices::Choices;

/// What a value was parsed to, or what is wrong with it and the remedy.
#[derive(Clone, Debug)]
pub(super) struct Parsed<T>(pub(super) Result<T, String>);

/// A single value of the configuration.
pub(super) trait Value: Sized {
    /// Parses the text of a flag, or a string of the file.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and the remedy.
    fn parse(text: &str) -> Result<Self, String>;

    /// Parses a value of the file.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and the remedy.
    fn parse_scalar(scalar: Scalar) -> Result<Self, String> {
        match scalar {
            Scalar::Text(text) => Self::parse(&text),
            other @ (Scalar::Integer(_) | Scalar::Float(_) | Scalar::Boolean(_)) => {
                Err(format!("{other} is no string; put it in quotes: \"{other}\""))
            }
        }
    }

    /// Its JSON schema; `title` is the name of the type for people.
    fn schema() -> Schema;
}

/// A value as TOML has it.
#[derive(Clone, Debug)]
pub(super) enum Scalar {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Boolean(boolean) => write!(f, "{boolean}"),
        }
    }
}

impl<'de, T: Value> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a single value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(number))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
                Ok(Scalar::Float(number))
            }

            fn visit_bool<E>(self, boolean: bool) -> Result<Scalar, E> {
                Ok(Scalar::Boolean(boolean))
            }
        }

        deserializer.deserialize_any(ScalarVisitor).map(|scalar| Self(T::parse_scalar(scalar)))
    }
}

impl<T: Value> JsonSchema for Parsed<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "value".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

fn string_schema(title: &str) -> Schema {
    json_schema!({ "type": "string", "title": title })
}

impl<T: Choices> Value for T {
    fn parse(text: &str) -> Result<Self, String> {
        let labels = || T::CHOICES.iter().map(|choice| choice.label).collect::<Vec<_>>().join(", ");
        let found = T::CHOICES.iter().find(|choice| choice.label == text);
        found
            .map(|choice| choice.value.clone())
            .ok_or_else(|| format!("\"{text}\" is unknown; one of {}", labels()))
    }

    fn schema() -> Schema {
        let choices = T::CHOICES
            .iter()
            .map(|choice| json!({ "const": choice.label, "description": choice.meaning }));
        json_schema!({ "title": "choice", "oneOf": choices.collect::<Vec<_>>() })
    }
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn schema() -> Schema {
        string_schema("string")
    }
}

impl Value for bool {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("\"{text}\" is unknown; one of true, false"))
    }

    fn parse_scalar(scalar: Scalar) -> Result<Self, String> {
        match scalar {
            Scalar::Boolean(boolean) => Ok(boolean),
            other @ (Scalar::Text(_) | Scalar::Integer(_) | Scalar::Float(_)) => {
                Err(format!("{other} is no boolean; write true or false, without quotes"))
            }
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": "boolean", "title": "boolean" })
    }
}

/// A whole number between two bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count<const MIN: u32, const MAX: u32 = { u32::MAX }>(pub(super) u32);

impl<const MIN: u32, const MAX: u32> Count<MIN, MAX> {
    fn from_number(number: i64) -> Result<Self, String> {
        let in_range = u32::try_from(number).ok().filter(|number| (MIN..=MAX).contains(number));
        in_range.map(Self).ok_or_else(|| match MAX {
            u32::MAX => format!("{number} is out of range; at least {MIN}"),
            _ => format!("{number} is out of range; {MIN} to {MAX}"),
        })
    }
}

impl<const MIN: u32, const MAX: u32> Value for Count<MIN, MAX> {
    fn parse(text: &str) -> Result<Self, String> {
        let number = text.parse().map_err(|_| format!("\"{text}\" is no whole number"));
        number.and_then(Self::from_number)
    }

    fn parse_scalar(scalar: Scalar) -> Result<Self, String> {
        match scalar {
            Scalar::Integer(number) => Self::from_number(number),
            other @ (Scalar::Text(_) | Scalar::Float(_) | Scalar::Boolean(_)) => {
                Err(format!("{other} is no whole number; write it without quotes, like {MIN}"))
            }
        }
    }

    fn schema() -> Schema {
        let mut schema = json_schema!({ "type": "integer", "title": "integer", "minimum": MIN });
        if MAX < u32::MAX {
            schema.insert("maximum".into(), json!(MAX));
        }
        schema
    }
}

impl Value for Duration {
    fn parse(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(Self::ZERO) => Err("must be longer than 0".into()),
            Ok(duration) => Ok(duration),
            Err(_) => {
                Err(format!("\"{text}\" is no duration; write a number and a unit, like \"5s\""))
            }
        }
    }

    fn parse_scalar(scalar: Scalar) -> Result<Self, String> {
        match scalar {
            Scalar::Text(text) => Self::parse(&text),
            other @ (Scalar::Integer(_) | Scalar::Float(_) | Scalar::Boolean(_)) => {
                Err(format!("{other} is no duration; write a number and a unit, like \"5s\""))
            }
        }
    }

    fn schema() -> Schema {
        string_schema("duration")
    }
}

impl Value for Option<Duration> {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" { Ok(None) } else { Duration::parse(text).map(Some) }
    }

    fn schema() -> Schema {
        string_schema("duration or `off`")
    }
}

/// `instance`: a name that can be the name of a folder.
#[derive(Clone, Debug)]
pub(super) struct InstanceName(pub(super) String);

impl Value for InstanceName {
    fn parse(text: &str) -> Result<Self, String> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        match (1..=32).contains(&text.len()) && text.bytes().all(is_plain) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("\"{text}\" is no name; up to 32 letters, digits, - and _")),
        }
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string", "title": "name", "pattern": "^[A-Za-z0-9_-]{1,32}$",
        })
    }
}

/// An address to listen on.
impl Value for SocketAddr {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            let hint = match text.parse::<IpAddr>() {
                Ok(IpAddr::V6(ip)) => format!("add a port: \"[{ip}]:443\""),
                Ok(IpAddr::V4(ip)) => format!("add a port: \"{ip}:443\""),
                Err(_) => "write \"IP:PORT\", \"[IPv6]:PORT\", or \"[::]:PORT\" for all".into(),
            };
            format!("\"{text}\" is no address to listen on; {hint}")
        })
    }

    fn schema() -> Schema {
        string_schema("address")
    }
}

/// The address of a name server; the port is 53 if it is not given.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameServer(pub(super) SocketAddr);

impl Value for NameServer {
    fn parse(text: &str) -> Result<Self, String> {
        let without_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        text.parse().or_else(|_| without_port()).map(Self).map_err(|_| {
            format!("\"{text}\" is no address; write \"IP\", \"IP:PORT\" or \"[IPv6]:PORT\"")
        })
    }

    fn schema() -> Schema {
        string_schema("name server")
    }
}

/// A network, or one address.
impl Value for IpNet {
    fn parse(text: &str) -> Result<Self, String> {
        let one = || text.parse::<IpAddr>().map(Self::from).ok();
        text.parse().ok().or_else(one).ok_or_else(|| {
            format!("\"{text}\" is no network; write it like \"10.0.0.0/8\" or \"fd00::/8\"")
        })
    }

    fn schema() -> Schema {
        string_schema("network")
    }
}

impl Value for Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|why| format!("\"{text}\" {why}"))
    }

    fn schema() -> Schema {
        string_schema("name pattern")
    }
}

impl Value for BackendAddr {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |hint: &str| Err(format!("\"{text}\" is no back end; {hint}"));
        if let Some((address, weight)) = text.split_once(" weight=") {
            let address = address.trim();
            return wrong(&format!("write {{ address = \"{address}\", weight = {weight} }}"));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => wrong("write the socket's absolute path: \"unix:/run/app.sock\""),
            };
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address.port() {
                0 => wrong("the port must be 1 to 65535"),
                _ => Ok(Self::Ip(address)),
            };
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return wrong("add a port: \"HOST:PORT\"");
        };
        let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
            return wrong("the port must be 1 to 65535");
        };
        match ServerName::parse(host.as_bytes()) {
            Ok(name) => Ok(Self::Host(name.as_str().into(), port)),
            Err(_) if host.contains(':') => {
                wrong("put brackets around an IPv6 address: \"[::1]:443\"")
            }
            Err(why) => wrong(&format!("its host {why}")),
        }
    }

    fn schema() -> Schema {
        string_schema("back end address")
    }
}

/// A URL of the `https` scheme.
#[derive(Clone, Debug)]
pub(super) struct HttpsUrl(pub(super) String);

impl Value for HttpsUrl {
    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("https://") {
            Some(rest) if !rest.is_empty() => Ok(Self(text.to_owned())),
            Some(_) | None => Err(format!("\"{text}\" is no https:// URL (RFC 8555 §6.1)")),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "title": "`https://` URL", "pattern": "^https://." })
    }
}

/// A URL to contact an operator by.
#[derive(Clone, Debug)]
pub(super) struct ContactUrl(pub(super) String);

impl Value for ContactUrl {
    fn parse(text: &str) -> Result<Self, String> {
        match text.contains(':') {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("\"{text}\" is no URL; write it like \"mailto:{text}\"")),
        }
    }

    fn schema() -> Schema {
        string_schema("URL")
    }
}

/// The path of a file.
impl Value for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }

    fn schema() -> Schema {
        string_schema("path")
    }
}

/// The path of a file that can be read when the configuration is loaded.
#[derive(Clone, Debug)]
pub(super) struct ReadableFile(pub(super) PathBuf);

impl Value for ReadableFile {
    fn parse(text: &str) -> Result<Self, String> {
        match std::fs::File::open(text) {
            Ok(_) => Ok(Self(text.into())),
            Err(error) => Err(format!("\"{text}\" cannot be read: {error}")),
        }
    }

    fn schema() -> Schema {
        string_schema("path of a readable file")
    }
}

/// A path from `/` on.
#[derive(Clone, Debug)]
pub(super) struct AbsolutePath(pub(super) PathBuf);

impl Value for AbsolutePath {
    fn parse(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        match path.is_absolute() {
            true => Ok(Self(path)),
            false => Err(format!("\"{text}\" is relative; write it from / on")),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "title": "absolute path", "pattern": "^/" })
    }
}

/// `eab_hmac`: a key that CAs show in base64 or base64url.
#[derive(Clone, Debug)]
pub(super) struct EabHmac(pub(super) Vec<u8>);

impl Value for EabHmac {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
        let decoded = BASE64URL_NOPAD.decode(text.as_bytes());
        decoded.map(Self).map_err(|_| "is not base64; copy it as the CA shows it".into())
    }

    fn schema() -> Schema {
        string_schema("base64 or base64url")
    }
}

/// `tsig_secret`: a key in base64.
#[derive(Clone, Debug)]
pub(super) struct TsigSecret(pub(super) Vec<u8>);

impl Value for TsigSecret {
    fn parse(text: &str) -> Result<Self, String> {
        let decoded = BASE64.decode(text.as_bytes());
        decoded.map(Self).map_err(|_| "is not base64; copy it as tsig-keygen shows it".into())
    }

    fn schema() -> Schema {
        string_schema("base64")
    }
}

/// A protocol of ALPN (RFC 7301), but not that of TLS-ALPN-01.
#[derive(Clone, Debug)]
pub(super) struct AlpnProtocol(pub(super) Vec<u8>);

impl Value for AlpnProtocol {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "acme-tls/1" => {
                Err("the agent answers acme-tls/1 while an order runs; leave it out".into())
            }
            _ if (1..=255).contains(&text.len()) => Ok(Self(text.as_bytes().to_vec())),
            _ => Err(format!("\"{text}\" is no protocol; write one like \"h2\" or \"http/1.1\"")),
        }
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string", "title": "ALPN protocol", "minLength": 1, "maxLength": 255,
        })
    }
}

/// A range of ports from 1024 on.
impl Value for RangeInclusive<u16> {
    fn parse(text: &str) -> Result<Self, String> {
        let range = text.split_once('-').and_then(|(first, last)| {
            Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
        });
        range.filter(|range| !range.is_empty() && *range.start() >= 1_024).ok_or_else(|| {
            format!("\"{text}\" is no range of ports from 1024 on; write it like \"16384-32767\"")
        })
    }

    fn schema() -> Schema {
        string_schema("port range")
    }
}
