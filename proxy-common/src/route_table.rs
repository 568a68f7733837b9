//! Who owns a name: the most specific route that names it, and nothing else takes part.
//!
//! Exact before wildcard before `*`. The order of routes in the file, the length of a rule, the
//! client's address: none of these can move a name. Two routes with one name cannot both be built.

use std::collections::HashMap;

use crate::server_name::{Pattern, ServerName};

/// An immutable table from server names to routes.
#[derive(Debug)]
pub struct RouteTable<R> {
    routes: Vec<R>,
    exact: HashMap<ServerName, usize>,
    /// By the part behind `*.`; a name has one parent, so at most one wildcard covers it.
    wildcard: HashMap<String, usize>,
    default: Option<usize>,
}

/// A route and how it came to own a name.
#[derive(Debug)]
pub struct RouteMatch<'r, R> {
    /// The route.
    pub route: &'r R,
    /// How specific its claim is.
    pub kind: MatchKind,
}

/// How a route names a name; the more specific claim is the lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MatchKind {
    /// In full.
    Exact,
    /// By its parent domain.
    Wildcard,
    /// Not at all: it takes what is left.
    Default,
}

impl MatchKind {
    /// A short word for counters and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Wildcard => "wildcard",
            Self::Default => "catch_all",
        }
    }
}

/// A name that two routes want, by their positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConflict {
    /// The name both have.
    pub pattern: Pattern,
    /// The route that has it first.
    pub first: usize,
    /// The route that has it again; the same one if it lists the name twice.
    pub second: usize,
}

impl<R> RouteTable<R> {
    /// Builds the table.
    ///
    /// # Errors
    ///
    /// Two routes with the same pattern are a conflict; the first one is returned.
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

    /// The owner of a name; of no name at all, the default route.
    pub fn lookup(&self, name: Option<&ServerName>) -> Option<RouteMatch<'_, R>> {
        let exact = || name.and_then(|name| self.exact.get(name));
        let wildcard = || name.and_then(ServerName::parent).and_then(|p| self.wildcard.get(p));
        let (index, kind) = exact()
            .map(|index| (*index, MatchKind::Exact))
            .or_else(|| wildcard().map(|index| (*index, MatchKind::Wildcard)))
            .or_else(|| self.default.map(|index| (index, MatchKind::Default)))?;
        Some(RouteMatch { route: &self.routes[index], kind })
    }

    /// All routes, in the order they were given.
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
