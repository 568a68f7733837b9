//! `snisplit net`: shows, adds and removes the policy routing that `source_address = "client"` needs.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::config::Config;
use crate::net::netlink;
use crate::net::routing::{RoutingItem, check_ip_transparent, desired_items};

/// Prints each item as present or missing. The exit code is a failure if one is missing.
///
/// # Errors
///
/// The kernel does not list its routing rules.
pub fn check(config: &Config) -> Result<ExitCode> {
    let present = netlink::installed().context("cannot read the routing rules")?;
    let desired = desired_items(config);
    if desired.is_empty() {
        println!("no route says source_address = \"client\": nothing is needed");
    }
    for item in &desired {
        let status = if present.contains(item) { "ok" } else { "NO" };
        println!("{status:<4}  {item}");
    }
    for item in present.difference(&desired) {
        println!("warn  not needed by this configuration: {item}");
    }
    let transparent = check_ip_transparent();
    if let (false, Err(error)) = (desired.is_empty(), &transparent) {
        println!("NO    IP_TRANSPARENT: {error}; the agent needs CAP_NET_ADMIN");
    }
    let is_complete = desired.is_empty() || (transparent.is_ok() && desired.is_subset(&present));
    if !is_complete {
        println!("`snisplit net apply` adds what is missing");
    }
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds the missing items, and removes those that this configuration does not need.
///
/// # Errors
///
/// The kernel refuses a change, for example without CAP_NET_ADMIN.
pub fn apply(config: &Config) -> Result<()> {
    let desired = desired_items(config);
    reconcile(&desired)
}

/// Removes all items.
///
/// # Errors
///
/// The kernel refuses a change, for example without CAP_NET_ADMIN.
pub fn remove() -> Result<()> {
    reconcile(&BTreeSet::new())
}

fn reconcile(desired: &BTreeSet<RoutingItem>) -> Result<()> {
    let present = netlink::installed().context("cannot read the routing rules")?;
    // The lookup continues with the next rule when a table has no match, so any order is safe.
    for item in present.difference(desired) {
        netlink::remove(item).with_context(|| format!("cannot undo `{item}`"))?;
        println!("removed  {item}");
    }
    for item in desired.difference(&present) {
        netlink::add(item).with_context(|| format!("cannot do `{item}`"))?;
        println!("added    {item}");
    }
    Ok(())
}
