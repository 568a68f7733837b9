//! `[limits]`: bounds on connections, sizes and times.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::diagnostic::Diagnostics;
use super::located::Setting;
use super::value::Count;
use super::{defaults, schema};
use crate::engine::TcpTimeouts;

/// Bounds on connections, sizes and times.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of the handshake message, without its 4-byte header.
    pub max_client_hello_bytes: usize,
    /// For each attempt to connect to a back end.
    pub connect_timeout: Duration,
    /// How long a back end may be silent after the ClientHello while another one is left to try;
    /// `None` for `off`.
    pub first_byte_timeout: Option<Duration>,
    /// Concurrent connections.
    pub max_connections: usize,
    /// Concurrent connections that have not sent a complete ClientHello.
    pub max_pending_handshakes: usize,
    /// Concurrent flows of an IPv4 address or an IPv6 /64.
    pub max_connections_per_source: usize,
    /// Connections per second; 0 is no limit.
    pub accept_rate: u32,
    /// Time without a byte after which a flow is reset; `None` for `off`.
    pub idle_timeout: Option<Duration>,
    /// Idle time before the first probe, on both sides; `None` for `off`.
    pub keepalive: Option<Duration>,
    /// Time that sent data may stay unacknowledged; `None` for the kernel's own.
    pub user_timeout: Option<Duration>,
    /// Networks that back ends may be in; empty for anywhere.
    pub backends_allowed: Vec<IpNet>,
}

impl Limits {
    /// Whether a back end may be at this address.
    pub fn allows_backend(&self, address: IpAddr) -> bool {
        let nets = &self.backends_allowed;
        nets.is_empty() || nets.iter().any(|net| net.contains(&address.to_canonical()))
    }

    /// The timeouts after which the kernel gives up a silent peer.
    pub(crate) const fn tcp_timeouts(&self) -> TcpTimeouts {
        TcpTimeouts { keepalive: self.keepalive, user_timeout: self.user_timeout }
    }
}

pub(super) fn build(table: schema::Limits, diagnostics: &mut Diagnostics) -> Limits {
    let mut limits = LimitReader { diagnostics };
    Limits {
        max_client_hello_bytes: limits.count(
            "max_client_hello_bytes",
            table.max_client_hello_bytes,
            defaults::MAX_CLIENT_HELLO_BYTES,
        ) as usize,
        connect_timeout: limits.value(
            "connect_timeout",
            table.connect_timeout,
            defaults::CONNECT_TIMEOUT,
        ),
        max_connections: limits.count(
            "max_connections",
            table.max_connections,
            defaults::MAX_CONNECTIONS,
        ) as usize,
        max_pending_handshakes: limits.count(
            "max_pending_handshakes",
            table.max_pending_handshakes,
            defaults::MAX_PENDING_HANDSHAKES,
        ) as usize,
        max_connections_per_source: limits.count(
            "max_connections_per_source",
            table.max_connections_per_source,
            defaults::MAX_CONNECTIONS_PER_SOURCE,
        ) as usize,
        accept_rate: limits.count("accept_rate", table.accept_rate, defaults::ACCEPT_RATE),
        first_byte_timeout: limits.value(
            "first_byte_timeout",
            table.first_byte_timeout,
            defaults::OFF,
        ),
        idle_timeout: limits.value("idle_timeout", table.idle_timeout, defaults::OFF),
        keepalive: limits.value("keepalive", table.keepalive, defaults::KEEPALIVE),
        user_timeout: limits.value("user_timeout", table.user_timeout, defaults::OFF),
        backends_allowed: diagnostics
            .values("limits.backends_allowed", table.backends_allowed)
            .unwrap_or_default(),
    }
}

/// Reads the keys of `[limits]`; a wrong one is reported, and its default stands in.
struct LimitReader<'d> {
    diagnostics: &'d mut Diagnostics,
}

impl LimitReader<'_> {
    fn value<T>(&mut self, key: &str, setting: Option<Setting<T>>, default: T) -> T {
        self.diagnostics.value(&format!("limits.{key}"), setting).unwrap_or(default)
    }

    fn count<const MIN: u32, const MAX: u32>(
        &mut self,
        key: &str,
        setting: Option<Setting<Count<MIN, MAX>>>,
        default: u32,
    ) -> u32 {
        self.value(key, setting, Count(default)).0
    }
}
