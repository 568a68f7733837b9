//! The text of `--route` and `--terminate`.

use super::super::build::Item;
use super::super::routes::DraftRoute;
use super::super::terminate::DraftTerminate;
use super::flag;

/// `a.test,www.a.test=10.0.0.5:443,10.0.0.6:443;acme=backend`. What is missing is left empty and
/// found wrong later, by the code that finds it wrong in a file.
pub(super) fn route(text: &str) -> DraftRoute {
    let (mut draft, options) = named("--route", "route", text);
    for (key, item) in options {
        match key {
            "acme" => draft.acme = Some(item),
            "http_backends" => draft.http_backends = list(&item),
            _ => set_option(&mut draft, key, item),
        }
    }
    draft
}

/// `front.test=127.0.0.1:8080;challenge=http-01`
pub(super) fn terminate(text: &str) -> DraftTerminate {
    let (mut route, options) = named("--terminate", "terminate", text);
    let (mut challenge, mut cert, mut key_file, mut alpn) = (None, None, None, Vec::new());
    for (key, item) in options {
        match key {
            "challenge" => challenge = Some(item),
            "cert" => cert = Some(item),
            "key" => key_file = Some(item),
            "alpn" => alpn = list(&item),
            _ => set_option(&mut route, key, item),
        }
    }
    DraftTerminate { route, challenge, cert, key: key_file, alpn }
}

/// What both have in common: names and back ends, and the options behind them.
fn named<'t>(
    flag_name: &str,
    section: &'static str,
    text: &'t str,
) -> (DraftRoute, Vec<(&'t str, Item<String>)>) {
    let origin = flag(flag_name, format!("'{text}'"));
    let item = |value: &str| Item { origin: origin.clone(), value: value.trim().to_owned() };
    let mut parts = text.split(';');
    let route = parts.next().unwrap_or_default();
    let (names, backends) = route.split_once('=').unwrap_or((route, ""));
    let mut draft = DraftRoute::at(origin.clone(), section);
    (draft.sni, draft.backends) = (list(&item(names)), list(&item(backends)));
    let option = |option: &'t str| {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        (key, item(value))
    };
    (draft, parts.map(option).collect())
}

fn list(item: &Item<String>) -> Vec<Item<String>> {
    let values = item.value.split(',').map(str::trim).filter(|value| !value.is_empty());
    values.map(|value| Item { origin: item.origin.clone(), value: value.to_owned() }).collect()
}

fn set_option(draft: &mut DraftRoute, key: &str, item: Item<String>) {
    let number = item.value.parse().map(|value| Item { origin: item.origin.clone(), value });
    match (key, number) {
        ("send_proxy", _) => draft.send_proxy = Some(item),
        ("source", _) => draft.source = Some(item),
        ("balance", _) => draft.balance = Some(item),
        ("check", _) => draft.check = Some(item),
        ("check_interval", _) => draft.check_interval = Some(item),
        ("slow_start", _) => draft.slow_start = Some(item),
        ("rise", Ok(number)) => draft.rise = Some(number),
        ("fall", Ok(number)) => draft.fall = Some(number),
        _ => {
            let value = format!("{key}={}", item.value);
            draft.unknown.push(Item { value, ..item });
        }
    }
}
