//! The text of `--route` and `--terminate`.

use super::flag_origin;
use crate::config::route_table::{DraftBackend, DraftRoute};
use crate::config::terminate::DraftTerminate;
use crate::config::validate::Located;

/// `a.test,www.a.test=10.0.0.5:443,10.0.0.6:443;acme=backend`. What is missing is left empty and
/// found wrong later, by the code that finds it wrong in a file.
pub(super) fn parse_route(text: &str) -> DraftRoute {
    let (mut draft, options) = parse_names_and_backends("--route", "route", text);
    for (key, item) in options {
        match key {
            "acme" => draft.acme = Some(item),
            "http_backends" => draft.http_backends = backends(&item),
            _ => set_option(&mut draft, key, item),
        }
    }
    draft
}

/// `front.test=127.0.0.1:8080;challenge=http-01`
pub(super) fn parse_terminate(text: &str) -> DraftTerminate {
    let (mut route, options) = parse_names_and_backends("--terminate", "terminate", text);
    let (mut challenge, mut cert, mut key_file, mut alpn) = (None, None, None, Vec::new());
    for (key, item) in options {
        match key {
            "challenge" => challenge = Some(item),
            "cert" => cert = Some(item),
            "key" => key_file = Some(item),
            "alpn" => alpn = split_list(&item),
            _ => set_option(&mut route, key, item),
        }
    }
    DraftTerminate { route, challenge, cert, key: key_file, alpn }
}

/// What both have in common: names and back ends, and the options behind them.
fn parse_names_and_backends<'t>(
    flag_name: &str,
    section: &'static str,
    text: &'t str,
) -> (DraftRoute, Vec<(&'t str, Located<String>)>) {
    let origin = flag_origin(flag_name, format!("'{text}'"));
    let item = |value: &str| Located { origin: origin.clone(), value: value.trim().to_owned() };
    let mut parts = text.split(';');
    let route = parts.next().unwrap_or_default();
    let (names, backends) = route.split_once('=').unwrap_or((route, ""));
    let mut draft = DraftRoute::empty(origin.clone(), section);
    (draft.sni, draft.backends) = (split_list(&item(names)), self::backends(&item(backends)));
    let option = |option: &'t str| {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        (key, item(value))
    };
    (draft, parts.map(option).collect())
}

fn split_list(item: &Located<String>) -> Vec<Located<String>> {
    let values = item.value.split(',').map(str::trim).filter(|value| !value.is_empty());
    values.map(|value| Located { origin: item.origin.clone(), value: value.to_owned() }).collect()
}

fn backends(item: &Located<String>) -> Vec<DraftBackend> {
    split_list(item).into_iter().map(DraftBackend::Flag).collect()
}

fn set_option(draft: &mut DraftRoute, key: &str, item: Located<String>) {
    let number = item.value.parse().map(|value| Located { origin: item.origin.clone(), value });
    match (key, number) {
        ("send_proxy", _) => draft.send_proxy = Some(item),
        ("source_address", _) => draft.source_address = Some(item),
        ("balance", _) => draft.balance = Some(item),
        ("health_check.type", _) => draft.health_check.kind = Some(item),
        ("health_check.interval", _) => draft.health_check.interval = Some(item),
        ("slow_start", _) => draft.slow_start = Some(item),
        ("health_check.rise", Ok(number)) => draft.health_check.rise = Some(number),
        ("health_check.fall", Ok(number)) => draft.health_check.fall = Some(number),
        _ => {
            let value = format!("{key}={}", item.value);
            draft.unknown.push(Located { value, ..item });
        }
    }
}
