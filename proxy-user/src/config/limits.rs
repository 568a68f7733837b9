//! `[limits]`: from text with places to [`Limits`].

use super::build::{Item, Wrong};
use super::{Limits, value};

/// Limits that are not understood yet.
#[derive(Debug, Default)]
pub(super) struct DraftLimits {
    pub(super) hello_bytes: Option<Item<i64>>,
    pub(super) dial_timeout: Option<Item<String>>,
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
