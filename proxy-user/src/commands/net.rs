//! `snisplit net`: shows, adds and removes the policy routing that `source_address = "client"` needs.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::config::Config;
use crate::net::netlink;
use crate::net::routing::{RoutingItem, check_ip_transparent, desired_items};

/// Whether the host has the policy routing that a configuration needs.
#[derive(Debug, Serialize)]
pub struct RoutingReport {
    /// Whether a route has `source_address = "client"`.
    needed: bool,
    complete: bool,
    items: Vec<ItemStatus>,
    /// Why IP_TRANSPARENT cannot be set.
    ip_transparent_error: Option<String>,
}

/// A rule or route.
#[derive(Debug, Serialize)]
struct ItemStatus {
    /// The ip(8) command that adds it.
    command: String,
    state: ItemState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum ItemState {
    Present,
    Missing,
    /// Present, but not needed by this configuration.
    Unneeded,
}

/// Rules and routes that a verb changed.
#[derive(Debug, Default, Serialize)]
pub struct RoutingChanges {
    /// As ip(8) commands.
    removed: Vec<String>,
    /// As ip(8) commands.
    added: Vec<String>,
}

impl RoutingReport {
    /// Compares what the kernel has with what a configuration needs.
    ///
    /// # Errors
    ///
    /// The kernel does not list its routing rules.
    pub fn read(config: &Config) -> Result<Self> {
        let present = netlink::installed().context("cannot read the routing rules")?;
        let desired = desired_items(config);
        let needed = !desired.is_empty();
        let status = |item: &RoutingItem, state| ItemStatus { command: item.to_string(), state };
        let wanted = desired.iter().map(|item| {
            status(
                item,
                if present.contains(item) { ItemState::Present } else { ItemState::Missing },
            )
        });
        let unneeded = present.difference(&desired).map(|item| status(item, ItemState::Unneeded));
        let items: Vec<ItemStatus> = wanted.chain(unneeded).collect();
        let transparent = if needed { check_ip_transparent() } else { Ok(()) };
        let complete =
            transparent.is_ok() && items.iter().all(|item| item.state != ItemState::Missing);
        let ip_transparent_error = transparent.err().map(|error| error.to_string());
        Ok(Self { needed, complete, items, ip_transparent_error })
    }

    /// Whether nothing is missing.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }
}

impl fmt::Display for RoutingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.needed {
            writeln!(f, "no route says source_address = \"client\": nothing is needed")?;
        }
        for ItemStatus { command, state } in &self.items {
            match state {
                ItemState::Present => writeln!(f, "ok    {command}"),
                ItemState::Missing => writeln!(f, "NO    {command}"),
                ItemState::Unneeded => {
                    writeln!(f, "warn  not needed by this configuration: {command}")
                }
            }?;
        }
        if let Some(error) = &self.ip_transparent_error {
            writeln!(f, "NO    IP_TRANSPARENT: {error}; the agent needs CAP_NET_ADMIN")?;
        }
        if !self.complete {
            writeln!(f, "`snisplit net apply` adds what is missing")?;
        }
        Ok(())
    }
}

impl RoutingChanges {
    /// The message for a change that failed, with those that were made before it.
    fn failure(&self, what: &str, item: &RoutingItem) -> String {
        let removed = self.removed.iter().map(|done| format!("; removed before: `{done}`"));
        let added = self.added.iter().map(|done| format!("; added before: `{done}`"));
        let done: String = removed.chain(added).collect();
        format!("{what} `{item}`{done}")
    }
}

impl fmt::Display for RoutingChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.removed.is_empty() && self.added.is_empty() {
            writeln!(f, "nothing to change")?;
        }
        self.removed.iter().try_for_each(|item| writeln!(f, "removed  {item}"))?;
        self.added.iter().try_for_each(|item| writeln!(f, "added    {item}"))
    }
}

/// Adds the missing items, and removes those that this configuration does not need.
///
/// # Errors
///
/// The kernel refuses a change, for example without CAP_NET_ADMIN.
pub fn apply(config: &Config) -> Result<RoutingChanges> {
    let desired = desired_items(config);
    reconcile(&desired)
}

/// Removes all items.
///
/// # Errors
///
/// The kernel refuses a change, for example without CAP_NET_ADMIN.
pub fn remove() -> Result<RoutingChanges> {
    reconcile(&BTreeSet::new())
}

fn reconcile(desired: &BTreeSet<RoutingItem>) -> Result<RoutingChanges> {
    let mut changes = RoutingChanges::default();
    let present = netlink::installed().context("cannot read the routing rules")?;
    // The lookup continues with the next rule when a table has no match, so any order is safe.
    for item in present.difference(desired) {
        netlink::remove(item).with_context(|| changes.failure("cannot undo", item))?;
        changes.removed.push(item.to_string());
    }
    for item in desired.difference(&present) {
        netlink::add(item).with_context(|| changes.failure("cannot do", item))?;
        changes.added.push(item.to_string());
    }
    Ok(changes)
}
