//! `[limits]`: what they are, and from text with places to them.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use snisplit_common::limits::DEFAULT_MAX_CLIENT_HELLO_LEN;

use super::validate::{Diagnostics, Located};
use super::{DEFAULT_CONNECT_TIMEOUT, parse};
use crate::engine::TcpTimeouts;

/// Bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `max_client_hello_bytes`: of the handshake message, without its header of 4.
    pub max_client_hello_bytes: usize,
    /// `connect_timeout`: for each attempt.
    pub connect_timeout: Duration,
    /// `first_byte_timeout`: how long a back end may be silent behind the hello while another one is
    /// left to try; `None` for `off`.
    pub first_byte_timeout: Option<Duration>,
    /// `max_connections`
    pub max_connections: usize,
    /// `max_pending_handshakes`: connections that have not said their hello.
    pub max_pending_handshakes: usize,
    /// `max_connections_per_source`: concurrent flows of an IPv4 address or an IPv6 /64.
    pub max_connections_per_source: usize,
    /// `accept_rate`: connections a second; 0 is no limit.
    pub accept_rate: u32,
    /// `idle_timeout`; `None` for `off`.
    pub idle_timeout: Option<Duration>,
    /// `keepalive`: idle time before the first probe, on both legs; `None` for `off`.
    pub keepalive: Option<Duration>,
    /// `user_timeout`: how long sent data may stay unacknowledged; `None` for the kernel's own.
    pub user_timeout: Option<Duration>,
    /// `backends_allowed`: where back ends may be; empty for anywhere.
    pub backends_allowed: Vec<IpNet>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_client_hello_bytes: DEFAULT_MAX_CLIENT_HELLO_LEN,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            first_byte_timeout: None,
            max_connections: 100_000,
            max_pending_handshakes: 10_000,
            max_connections_per_source: 1_000,
            accept_rate: 0,
            idle_timeout: None,
            keepalive: Some(Duration::from_secs(60)),
            user_timeout: None,
            backends_allowed: Vec::new(),
        }
    }
}

impl Limits {
    /// Whether a back end may be at this address.
    pub fn allows_backend(&self, address: IpAddr) -> bool {
        let nets = &self.backends_allowed;
        nets.is_empty() || nets.iter().any(|net| net.contains(&address.to_canonical()))
    }

    /// What keeps connections from staying when their peer is gone.
    pub(crate) const fn tcp_timeouts(&self) -> TcpTimeouts {
        TcpTimeouts { keepalive: self.keepalive, user_timeout: self.user_timeout }
    }
}

/// Limits that are not understood yet.
#[derive(Debug, Default)]
pub(super) struct DraftLimits {
    pub(super) max_client_hello_bytes: Option<Located<i64>>,
    pub(super) connect_timeout: Option<Located<String>>,
    pub(super) first_byte_timeout: Option<Located<String>>,
    pub(super) max_connections: Option<Located<i64>>,
    pub(super) max_pending_handshakes: Option<Located<i64>>,
    pub(super) max_connections_per_source: Option<Located<i64>>,
    pub(super) accept_rate: Option<Located<i64>>,
    pub(super) idle_timeout: Option<Located<String>>,
    pub(super) keepalive: Option<Located<String>>,
    pub(super) user_timeout: Option<Located<String>>,
    pub(super) backends_allowed: Vec<Located<String>>,
}

pub(super) fn build(draft: DraftLimits, diagnostics: &mut Diagnostics) -> Limits {
    let mut limits = Limits::default();
    let mut parser = LimitParser(diagnostics);
    parser.parse_into(
        "max_client_hello_bytes",
        draft.max_client_hello_bytes,
        &mut limits.max_client_hello_bytes,
        parse::client_hello_bytes,
    );
    parser.parse_into("connect_timeout", draft.connect_timeout, &mut limits.connect_timeout, |t| {
        parse::duration(&t)
    });
    let at_least = |least| move |n| parse::count(n, least);
    parser.parse_into(
        "max_connections",
        draft.max_connections,
        &mut limits.max_connections,
        at_least(1),
    );
    parser.parse_into(
        "max_pending_handshakes",
        draft.max_pending_handshakes,
        &mut limits.max_pending_handshakes,
        at_least(1),
    );
    parser.parse_into(
        "max_connections_per_source",
        draft.max_connections_per_source,
        &mut limits.max_connections_per_source,
        at_least(1),
    );
    parser.parse_into("accept_rate", draft.accept_rate, &mut limits.accept_rate, |n| {
        parse::count(n, 0)
    });
    let off = |text: String| parse::duration_or_off(&text);
    parser.parse_into(
        "first_byte_timeout",
        draft.first_byte_timeout,
        &mut limits.first_byte_timeout,
        off,
    );
    parser.parse_into("idle_timeout", draft.idle_timeout, &mut limits.idle_timeout, off);
    parser.parse_into("keepalive", draft.keepalive, &mut limits.keepalive, off);
    parser.parse_into("user_timeout", draft.user_timeout, &mut limits.user_timeout, off);
    let networks = draft.backends_allowed;
    let allowed =
        diagnostics.parse_all("limits.backends_allowed", networks, |text| parse::network(&text));
    limits.backends_allowed = allowed.unwrap_or_default();
    limits
}

struct LimitParser<'w>(&'w mut Diagnostics);

impl LimitParser<'_> {
    fn parse_into<T, U>(
        &mut self,
        key: &str,
        item: Option<Located<T>>,
        target: &mut U,
        parse: impl FnOnce(T) -> Result<U, String>,
    ) {
        if let Some(value) = self.0.parse_optional(&format!("limits.{key}"), item, parse) {
            *target = value;
        }
    }
}
