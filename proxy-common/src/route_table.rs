//! Table of routes by server name.
//!
//! The route with the most specific match owns a name: exact before wildcard before `*`. Neither the order
//! of the routes nor the address of the client has an influence. Two routes with the same name are an error.

use std::collections::HashMap;

use crate::server_name::{Pattern, ServerName};

/// Immutable table of routes by server name.
#[derive(Debug)]
pub struct RouteTable<R> {
    routes: Vec<R>,
    exact: HashMap<ServerName, usize>,
    /// Routes by the part of a wildcard after `*.`. A name has one parent, so at most one wildcard matches it.
    wildcard: HashMap<String, usize>,
    default: Option<usize>,
}

/// Route of a name, and how it matches.
#[derive(Debug)]
pub struct RouteMatch<'r, R> {
    /// Matching route.
    pub route: &'r R,
    /// How specific the match is.
    pub kind: MatchKind,
}

/// Kind of match of a route. The more specific kind is the smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MatchKind {
    /// By the full name.
    Exact,
    /// By the parent domain.
    Wildcard,
    /// By the catch-all, which matches all names that no other route has.
    Default,
}

impl MatchKind {
    /// Returns the identifier of the kind in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Wildcard => "wildcard",
            Self::Default => "catch_all",
        }
    }
}

/// Name that two routes have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConflict {
    /// Name of both routes.
    pub pattern: Pattern,
    /// Index of the first route with the name.
    pub first: usize,
    /// Index of the second route with the name. It equals `first` if one route lists the name twice.
    pub second: usize,
}

impl<R> RouteTable<R> {
    /// Builds the table.
    ///
    /// # Errors
    ///
    /// Fails with the first conflict, if two routes have the same pattern.
    pub fn new(
        entries: impl IntoIterator<Item = (Vec<Pattern>, R)>,
    ) -> Result<Self, RouteConflict> {
        let mut table =
            Self { routes: vec![], exact: HashMap::new(), wildcard: HashMap::new(), default: None };
        for (second, (patterns, route)) in entries.into_iter().enumerate() {
            for pattern in patterns {
                let previous = match &pattern {
                    Pattern::Exact(name) => table.exact.insert(name.clone(), second),
                    Pattern::Wildcard(suffix) => {
                        table.wildcard.insert(suffix.as_str().to_owned(), second)
                    }
                    Pattern::Default => table.default.replace(second),
                };
                if let Some(first) = previous {
                    return Err(RouteConflict { pattern, first, second });
                }
            }
            table.routes.push(route);
        }
        Ok(table)
    }

    /// Returns the route of a name. Without a name, this is the catch-all route.
    pub fn lookup(&self, name: Option<&ServerName>) -> Option<RouteMatch<'_, R>> {
        let exact = || name.and_then(|name| self.exact.get(name));
        let wildcard = || name.and_then(ServerName::parent).and_then(|p| self.wildcard.get(p));
        let (index, kind) = exact()
            .map(|index| (*index, MatchKind::Exact))
            .or_else(|| wildcard().map(|index| (*index, MatchKind::Wildcard)))
            .or_else(|| self.default.map(|index| (index, MatchKind::Default)))?;
        Some(RouteMatch { route: &self.routes[index], kind })
    }

    /// Returns all routes in their original order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &R> {
        self.routes.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&[&str]]) -> Result<RouteTable<usize>, RouteConflict> {
        let patterns = |row: &&[&str]| row.iter().map(|text| text.parse().unwrap()).collect();
        RouteTable::new(rows.iter().enumerate().map(|(index, row)| (patterns(row), index)))
    }

    #[test]
    fn the_most_specific_route_matches_in_any_order() {
        let rows: &[&[&str]] = &[&["*"], &["*.a.test"], &["a.test", "x.a.test"], &["*.x.a.test"]];
        let want = [
            (Some("a.test"), 2, MatchKind::Exact),
            (Some("x.a.test"), 2, MatchKind::Exact),
            (Some("y.a.test"), 1, MatchKind::Wildcard),
            (Some("y.x.a.test"), 3, MatchKind::Wildcard),
            (Some("z.y.a.test"), 0, MatchKind::Default),
            (Some("test"), 0, MatchKind::Default),
            (None, 0, MatchKind::Default),
        ];
        for rotation in 0..rows.len() {
            let mut rotated = rows.to_vec();
            rotated.rotate_left(rotation);
            let table = table(&rotated).unwrap();
            for (name, row, kind) in want {
                let name = name.map(|name| ServerName::parse(name.as_bytes()).unwrap());
                let found = table.lookup(name.as_ref()).unwrap();
                assert_eq!((rotated[*found.route], found.kind), (rows[row], kind), "{name:?}");
            }
        }
    }

    #[test]
    fn without_a_default_route_a_name_may_match_nothing() {
        let table = table(&[&["a.test"]]).unwrap();
        let other = ServerName::parse(b"b.test").unwrap();
        assert!(table.lookup(Some(&other)).is_none());
        assert!(table.lookup(None).is_none());
    }

    #[test]
    fn two_routes_cannot_have_one_name() {
        let conflict = table(&[&["a.test"], &["b.test", "A.test"]]).unwrap_err();
        assert_eq!((conflict.first, conflict.second), (0, 1));
        assert_eq!(conflict.pattern.to_string(), "a.test");
        assert!(table(&[&["*"], &["*"]]).is_err());
        assert!(table(&[&["*.a.test", "*.a.test"]]).is_err());
    }
}
