//! The tables of routes, which share one namespace of names.

use std::sync::Arc;

use snisplit_common::route_table::RouteTable;
use snisplit_common::server_name::Pattern;

use super::diagnostic::Diagnostics;
use super::located::{Located, Position, Setting};
use super::route::{Route, RouteContext};
use super::schema::{self, ForwardingTable as _};
use super::terminate::{AcmeCapabilities, CertificateCheck, Terminate, TerminateContext};

/// `[[route]]` and `[[terminate]]`.
pub(super) struct RouteTables {
    pub(super) routes: RouteTable<Route>,
    pub(super) terminates: RouteTable<Arc<Terminate>>,
}

/// Where the names of a table were written.
struct NamePositions {
    section: &'static str,
    table: Position,
    names: Vec<Position>,
}

impl RouteTables {
    /// `None` if a problem was reported.
    pub(super) fn build(
        routes: Vec<Located<schema::Route>>,
        terminates: Vec<Located<schema::Terminate>>,
        capabilities: AcmeCapabilities,
        check_certificate: CertificateCheck,
        diagnostics: &mut Diagnostics,
    ) -> Option<Self> {
        if routes.is_empty() && terminates.is_empty() {
            diagnostics.report_whole(
                "route",
                "no routes; add [[route]] with sni = [\"a.test\"] and backends = \
                 [\"10.0.0.5:443\"], or --route 'a.test=10.0.0.5:443'",
            );
        }
        let route_names = routes
            .iter()
            .map(|route| NamePositions::new("route", &route.position, &route.value.sni));
        let terminate_names = terminates.iter().map(|terminate| {
            NamePositions::new("terminate", &terminate.position, &terminate.value.sni)
        });
        let positions: Vec<NamePositions> = route_names.chain(terminate_names).collect();
        let built: Vec<_> =
            routes.into_iter().map(|route| build_route(route, diagnostics)).collect();
        let routes: Option<Vec<Route>> = built.into_iter().collect();
        let built: Vec<_> = terminates
            .into_iter()
            .map(|Located { position, value }| {
                let context = RouteContext { section: "terminate", position: &position };
                let context = TerminateContext { context, capabilities, check_certificate };
                context.build(value, diagnostics)
            })
            .collect();
        let terminates: Option<Vec<Terminate>> = built.into_iter().collect();
        let (routes, terminates) = (routes?, terminates?);
        let all = routes.iter().chain(terminates.iter().map(|terminate| &terminate.route));
        report_conflict(all.map(|route| route.names.clone()).collect(), &positions, diagnostics)?;
        let routes = routes.into_iter().map(|route| (route.names.clone(), route));
        let terminates = terminates
            .into_iter()
            .map(|terminate| (terminate.route.names.clone(), Arc::new(terminate)));
        Some(Self {
            routes: RouteTable::new(routes).ok()?,
            terminates: RouteTable::new(terminates).ok()?,
        })
    }
}

fn build_route(route: Located<schema::Route>, diagnostics: &mut Diagnostics) -> Option<Route> {
    let Located { position, value: mut table } = route;
    let context = RouteContext { section: "route", position: &position };
    let forwarding = table.take_forwarding();
    let route = context.build(forwarding, diagnostics);
    let http_backends = context.backends("http_backends", table.http_backends, diagnostics);
    let acme = diagnostics.value("route.acme", table.acme).unwrap_or_default();
    Some(Route { http_backends: http_backends.unwrap_or_default(), acme, ..route? })
}

/// Reports a name that two tables have, of whatever kind.
fn report_conflict(
    names: Vec<Vec<Pattern>>,
    positions: &[NamePositions],
    diagnostics: &mut Diagnostics,
) -> Option<()> {
    let conflict = match RouteTable::new(names.iter().map(|names| (names.clone(), ()))) {
        Ok(_) => return Some(()),
        Err(conflict) => conflict,
    };
    let (first, second) = (&positions[conflict.first], &positions[conflict.second]);
    let same = |route: usize| {
        let names = names[route].iter().zip(&positions[route].names);
        names.filter(|(name, _)| **name == conflict.pattern).map(|(_, position)| position)
    };
    let first_position = same(conflict.first).next().unwrap_or(&first.table);
    let second_position = same(conflict.second).next_back().unwrap_or(&second.table);
    let message = format!(
        "\"{}\" is named at {} too; a name has one owner, so leave it in one place",
        conflict.pattern,
        diagnostics.origin(first_position)
    );
    diagnostics.report(second_position, &format!("{}.sni", second.section), message);
    None
}

impl NamePositions {
    fn new(section: &'static str, table: &Position, names: &[Setting<Pattern>]) -> Self {
        let names = names.iter().map(|name| name.position.clone()).collect();
        Self { section, table: table.clone(), names }
    }
}
