//! Any table of names, in any order: the owner is the most specific route, as a plain search says.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snisplit_common::server_name::{Pattern, ServerName};
use snisplit_common::route_table::{MatchKind, RouteTable};

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let asked = lines.next().unwrap_or_default();
    let rows: Vec<Vec<Pattern>> =
        lines.map(|line| line.split(' ').filter_map(|name| name.parse().ok()).collect()).collect();
    let entries = || rows.iter().cloned().zip(0..rows.len());
    let backwards = RouteTable::new(entries().rev());
    let Ok(table) = RouteTable::new(entries()) else {
        return assert!(backwards.is_err(), "a conflict in one order is one in the other");
    };
    let backwards = backwards.expect("no conflict in one order, none in the other");
    let name = ServerName::parse(asked.as_bytes()).ok();
    let owner = table.lookup(name.as_ref()).map(|owner| (*owner.route, owner.kind));
    let same = backwards.lookup(name.as_ref()).map(|owner| (*owner.route, owner.kind));
    assert_eq!(owner, same, "order took part");
    assert_eq!(owner, search(&rows, name.as_ref()));
});

fn search(rows: &[Vec<Pattern>], name: Option<&ServerName>) -> Option<(usize, MatchKind)> {
    let row = |wanted: &dyn Fn(&Pattern) -> bool| {
        rows.iter().position(|patterns| patterns.iter().any(wanted))
    };
    let text = name.map(ServerName::as_str);
    let exact = row(&|p| matches!(p, Pattern::Exact(own) if Some(own.as_str()) == text));
    let wildcard = row(&|p| match (p, text) {
        (Pattern::Wildcard(suffix), Some(text)) => text
            .strip_suffix(suffix.as_str())
            .and_then(|label| label.strip_suffix('.'))
            .is_some_and(|label| !label.is_empty() && !label.contains('.')),
        _ => false,
    });
    let default = row(&|p| matches!(p, Pattern::Default));
    exact
        .map(|row| (row, MatchKind::Exact))
        .or(wildcard.map(|row| (row, MatchKind::Wildcard)))
        .or(default.map(|row| (row, MatchKind::Default)))
}
