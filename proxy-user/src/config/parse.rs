//! One value at a time: text in, meaning or a sentence with the remedy out.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use snisplit_common::balance::BalancePolicy;
use snisplit_common::decide::{AcmeBypass, AcmePolicy};
use snisplit_common::limits::MAX_CLIENT_HELLO_LEN_CEILING;
use snisplit_common::proxy_protocol::Version;
use snisplit_common::server_name::{Pattern, ServerName};

use crate::engine::EngineChoice;
use crate::telemetry::access_log::AccessLogFormat;

use super::{Backend, BackendAddr, DEFAULT_WEIGHT, HealthCheckKind, SourceAddress, Starttls};

/// The largest share of a back end.
const MAX_WEIGHT: u16 = 256;

/// A name that can be one of a folder.
pub(super) fn instance(text: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match (1..=32).contains(&text.len()) && text.bytes().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err(format!("\"{text}\" is no name; up to 32 letters, digits, - and _")),
    }
}

pub(super) fn engine(text: &str) -> Result<EngineChoice, String> {
    text.parse().map_err(|why| format!("\"{text}\" {why}"))
}

pub(super) fn acme_bypass(text: &str) -> Result<AcmeBypass, String> {
    match text {
        "owned" => Ok(AcmeBypass::Owned),
        "never" => Ok(AcmeBypass::Never),
        "always" => Ok(AcmeBypass::Always),
        _ => Err(format!("\"{text}\" is unknown; one of owned, never, always")),
    }
}

pub(super) fn acme_policy(text: &str) -> Result<AcmePolicy, String> {
    match text {
        "auto" => Ok(AcmePolicy::Auto),
        "backend" => Ok(AcmePolicy::Backend),
        "local" => Ok(AcmePolicy::Local),
        "reject" => Ok(AcmePolicy::Reject),
        _ => Err(format!("\"{text}\" is unknown; one of auto, backend, local, reject")),
    }
}

pub(super) fn send_proxy(text: &str) -> Result<Option<Version>, String> {
    match text {
        "off" => Ok(None),
        "v1" => Ok(Some(Version::V1)),
        "v2" => Ok(Some(Version::V2)),
        _ => Err(format!("\"{text}\" is unknown; one of off, v1, v2")),
    }
}

/// The way back from a back end is set up for its address (`snisplit net`), so it must have one, and
/// not one of this host.
pub(super) fn source_address(text: &str, backends: &[Backend]) -> Result<SourceAddress, String> {
    let is_remote_ip = |backend: &Backend| match &backend.address {
        BackendAddr::Ip(address) => !address.ip().is_loopback(),
        BackendAddr::Host(..) | BackendAddr::Unix(_) => false,
    };
    match (text, backends.iter().find(|backend| !is_remote_ip(backend))) {
        ("local", _) => Ok(SourceAddress::Local),
        ("client", None) => Ok(SourceAddress::Client),
        ("client", Some(other)) => Err(format!(
            "\"client\" needs back ends on other hosts, by IP address; {other} is none"
        )),
        _ => Err(format!("\"{text}\" is unknown; one of local, client")),
    }
}

pub(super) fn log_format(text: &str) -> Result<AccessLogFormat, String> {
    match text {
        "json" => Ok(AccessLogFormat::Json),
        "text" => Ok(AccessLogFormat::Text),
        _ => Err(format!("\"{text}\" is unknown; one of json, text")),
    }
}

pub(super) fn starttls(text: &str) -> Result<Option<Starttls>, String> {
    match text {
        "off" => Ok(None),
        "postgres" => Ok(Some(Starttls::Postgres)),
        _ => Err(format!("\"{text}\" is unknown; one of off, postgres")),
    }
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().map(IpNet::from).ok();
    text.parse().ok().or_else(one).ok_or_else(|| {
        format!("\"{text}\" is no network; write it like \"10.0.0.0/8\" or \"fd00::/8\"")
    })
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(zero) if zero.is_zero() => Err("must be longer than 0".into()),
        Ok(duration) => Ok(duration),
        Err(_) => Err(format!("\"{text}\" is no duration; write a number and a unit, like \"5s\"")),
    }
}

/// A duration, or `off`.
pub(super) fn duration_or_off(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" { Ok(None) } else { duration(text).map(Some) }
}

/// A count of at least `least`.
pub(super) fn count<T: TryFrom<i64>>(number: i64, least: i64) -> Result<T, String> {
    let wrong = || format!("{number} is out of range; at least {least}");
    T::try_from(number).ok().filter(|_| number >= least).ok_or_else(wrong)
}

pub(super) fn client_hello_bytes(bytes: i64) -> Result<usize, String> {
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| (512..=MAX_CLIENT_HELLO_LEN_CEILING).contains(bytes))
        .ok_or_else(|| {
            format!("{bytes} is out of range; 512 to {MAX_CLIENT_HELLO_LEN_CEILING} bytes")
        })
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let hint = match text.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("add a port: \"[{ip}]:443\""),
            Ok(IpAddr::V4(ip)) => format!("add a port: \"{ip}:443\""),
            Err(_) => "write \"IP:PORT\", \"[IPv6]:PORT\", or \"[::]:PORT\" for all".into(),
        };
        format!("\"{text}\" is no address to listen on; {hint}")
    })
}

/// An address of a name server; port 53 goes without saying.
pub(super) fn nameserver(text: &str) -> Result<SocketAddr, String> {
    let without_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    text.parse().or_else(|_| without_port()).map_err(|_| {
        format!("\"{text}\" is no address; write \"IP\", \"IP:PORT\" or \"[IPv6]:PORT\"")
    })
}

pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    text.parse().map_err(|why| format!("\"{text}\" {why}"))
}

/// A back end of a flag: `HOST:PORT` or `unix:PATH`, and maybe ` weight=N`.
pub(super) fn flag_backend(text: &str) -> Result<Backend, String> {
    let mut words = text.split_whitespace();
    let address = backend_addr(words.next().unwrap_or_default())?;
    let mut weight = DEFAULT_WEIGHT;
    for word in words {
        let number = word.strip_prefix("weight=").and_then(|number| number.parse().ok());
        weight = number.filter(|weight| *weight <= MAX_WEIGHT).ok_or_else(|| {
            format!("\"{word}\" is no option of a back end; weight=N, 0 to 256, is one")
        })?;
    }
    Ok(Backend::new(address, weight))
}

pub(super) fn weight(number: i64) -> Result<u16, String> {
    let weight = u16::try_from(number).ok().filter(|weight| *weight <= MAX_WEIGHT);
    weight.ok_or_else(|| format!("{number} is out of range; 0 to {MAX_WEIGHT}"))
}

pub(super) fn backend_addr(text: &str) -> Result<BackendAddr, String> {
    let wrong = |hint: &str| Err(format!("\"{text}\" is no back end; {hint}"));
    if let Some((address, weight)) = text.split_once(" weight=") {
        let table = format!("{{ address = \"{}\", weight = {weight} }}", address.trim());
        return wrong(&format!("write {table}"));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.starts_with('/') {
            true => Ok(BackendAddr::Unix(path.into())),
            false => wrong("write the socket's absolute path: \"unix:/run/app.sock\""),
        };
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address.port() {
            0 => wrong("the port must be 1 to 65535"),
            _ => Ok(BackendAddr::Ip(address)),
        };
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong("add a port: \"HOST:PORT\"");
    };
    let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
        return wrong("the port must be 1 to 65535");
    };
    match ServerName::parse(host.as_bytes()) {
        Ok(name) => Ok(BackendAddr::Host(name.as_str().into(), port)),
        Err(_) if host.contains(':') => wrong("put brackets around an IPv6 address: \"[::1]:443\""),
        Err(why) => wrong(&format!("its host {why}")),
    }
}

pub(super) fn https_url(text: &str) -> Result<String, String> {
    match text.strip_prefix("https://") {
        Some(rest) if !rest.is_empty() => Ok(text.to_owned()),
        Some(_) | None => Err(format!("\"{text}\" is no https:// URL (RFC 8555 §6.1)")),
    }
}

pub(super) fn contact_url(text: &str) -> Result<String, String> {
    match text.contains(':') {
        true => Ok(text.to_owned()),
        false => Err(format!("\"{text}\" is no URL; write it like \"mailto:{text}\"")),
    }
}

pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(format!("\"{text}\" is relative; write it from / on")),
    }
}

/// A file that can be read now.
pub(super) fn readable_file(text: &str) -> Result<PathBuf, String> {
    match std::fs::File::open(text) {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(format!("\"{text}\" cannot be read: {error}")),
    }
}

pub(super) fn balance(text: &str) -> Result<BalancePolicy, String> {
    match text {
        "round_robin" => Ok(BalancePolicy::RoundRobin),
        "least_connections" => Ok(BalancePolicy::LeastConnections),
        "source_hash" => Ok(BalancePolicy::SourceHash),
        _ => Err(format!(
            "\"{text}\" is unknown; one of round_robin, least_connections, source_hash"
        )),
    }
}

pub(super) fn health_check_kind(text: &str) -> Result<Option<HealthCheckKind>, String> {
    match text {
        "off" => Ok(None),
        "tcp" => Ok(Some(HealthCheckKind::Tcp)),
        "tls" => Ok(Some(HealthCheckKind::Tls)),
        _ => Err(format!("\"{text}\" is unknown; one of off, tcp, tls")),
    }
}
