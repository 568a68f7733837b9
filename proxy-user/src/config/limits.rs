//! `[limits]`: what they are, and from text with places to them.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use snisplit_common::limits::DEFAULT_MAX_CLIENT_HELLO_LEN;

use super::build::{Item, Wrong};
use super::{DIAL_TIMEOUT, value};
use crate::engine::TcpTimeouts;

/// Bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `hello_bytes`: of the handshake message, without its header of 4.
    pub hello_bytes: usize,
    /// `dial_timeout`: for each attempt.
    pub dial_timeout: Duration,
    /// `answer_timeout`: how long a back end may be silent behind the hello while another one is
    /// left to try; `None` for `off`.
    pub answer_timeout: Option<Duration>,
    /// `max_connections`
    pub max_connections: usize,
    /// `max_peeking`: connections that have not said their hello.
    pub max_peeking: usize,
    /// `per_source`: concurrent flows of an IPv4 address or an IPv6 /64.
    pub per_source: usize,
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
            hello_bytes: DEFAULT_MAX_CLIENT_HELLO_LEN,
            dial_timeout: DIAL_TIMEOUT,
            answer_timeout: None,
            max_connections: 100_000,
            max_peeking: 10_000,
            per_source: 1_000,
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
    pub(crate) const fn upkeep(&self) -> TcpTimeouts {
        TcpTimeouts { keepalive: self.keepalive, user_timeout: self.user_timeout }
    }
}

/// Limits that are not understood yet.
#[derive(Debug, Default)]
pub(super) struct DraftLimits {
    pub(super) hello_bytes: Option<Item<i64>>,
    pub(super) dial_timeout: Option<Item<String>>,
    pub(super) answer_timeout: Option<Item<String>>,
    pub(super) max_connections: Option<Item<i64>>,
    pub(super) max_peeking: Option<Item<i64>>,
    pub(super) per_source: Option<Item<i64>>,
    pub(super) accept_rate: Option<Item<i64>>,
    pub(super) idle_timeout: Option<Item<String>>,
    pub(super) keepalive: Option<Item<String>>,
    pub(super) user_timeout: Option<Item<String>>,
    pub(super) backends_allowed: Vec<Item<String>>,
}

pub(super) fn build(draft: DraftLimits, wrong: &mut Wrong) -> Limits {
    let mut limits = Limits::default();
    let mut set = Setter(wrong);
    set.to("hello_bytes", draft.hello_bytes, &mut limits.hello_bytes, value::hello_bytes);
    set.to("dial_timeout", draft.dial_timeout, &mut limits.dial_timeout, |t| value::duration(&t));
    let at_least = |least| move |n| value::count(n, least);
    set.to("max_connections", draft.max_connections, &mut limits.max_connections, at_least(1));
    set.to("max_peeking", draft.max_peeking, &mut limits.max_peeking, at_least(1));
    set.to("per_source", draft.per_source, &mut limits.per_source, at_least(1));
    set.to("accept_rate", draft.accept_rate, &mut limits.accept_rate, |n| value::count(n, 0));
    let off = |text: String| value::duration_or_off(&text);
    set.to("answer_timeout", draft.answer_timeout, &mut limits.answer_timeout, off);
    set.to("idle_timeout", draft.idle_timeout, &mut limits.idle_timeout, off);
    set.to("keepalive", draft.keepalive, &mut limits.keepalive, off);
    set.to("user_timeout", draft.user_timeout, &mut limits.user_timeout, off);
    let networks = draft.backends_allowed;
    let allowed = wrong.all("limits.backends_allowed", networks, |text| value::network(&text));
    limits.backends_allowed = allowed.unwrap_or_default();
    limits
}

struct Setter<'w>(&'w mut Wrong);

impl Setter<'_> {
    fn to<T, U>(
        &mut self,
        key: &str,
        item: Option<Item<T>>,
        place: &mut U,
        parse: impl FnOnce(T) -> Result<U, String>,
    ) {
        if let Some(value) = self.0.opt(&format!("limits.{key}"), item, parse) {
            *place = value;
        }
    }
}
