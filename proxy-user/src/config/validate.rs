//! From the tables of a file and flags to a [`Config`], with all problems at once.

use std::sync::Arc;

use super::agent::{Config, Listener};
use super::diagnostic::Diagnostics;
use super::located::{Located, Position};
use super::schema::{self, ConfigFile};
use super::terminate::{AcmeCapabilities, CertificateCheck};
use super::{acme, defaults, limits, packet, route_table};

/// The configuration; `None` if a problem was reported.
pub(super) fn build(
    file: ConfigFile,
    check_certificate: CertificateCheck,
    diagnostics: &mut Diagnostics,
) -> Option<Config> {
    let capabilities = AcmeCapabilities {
        acme: file.acme.is_some(),
        dns: file.acme.as_ref().is_some_and(|acme| acme.value.dns.is_some()),
        http: file.http.is_some(),
    };
    let instance = diagnostics.value("instance", file.instance);
    let engine = diagnostics.value("engine", file.engine);
    let acme_bypass = diagnostics.value("acme_bypass", file.acme_bypass);
    let drain_timeout = diagnostics.value("drain_timeout", file.drain_timeout);
    let access_log = diagnostics.value("access_log", file.access_log);
    let access_log_format = diagnostics.value("access_log_format", file.access_log_format);
    let nameservers = diagnostics.values("nameservers", file.nameservers);
    let limits = limits::build(file.limits, diagnostics);
    let admin = diagnostics.value("admin.address", file.admin.address);
    let listeners = listeners(file.listener, diagnostics);
    let packet = packet::build(file.packet, diagnostics);
    let acme = file.acme.and_then(|acme| acme::build(acme, diagnostics));
    let http = file.http.and_then(|Located { position, value }| {
        report_missing_address("http", value.address.is_none(), &position, diagnostics);
        diagnostics.value("http.address", value.address)
    });
    let tables = route_table::RouteTables::build(
        file.route,
        file.terminate,
        capabilities,
        check_certificate,
        diagnostics,
    )?;
    Some(Config {
        instance: instance.map_or_else(|| defaults::INSTANCE.into(), |name| name.0),
        engine: engine.unwrap_or_default(),
        acme_bypass: acme_bypass.unwrap_or_default(),
        drain_timeout: drain_timeout.unwrap_or(defaults::DRAIN_TIMEOUT),
        listeners,
        routes: tables.routes,
        terminates: tables.terminates,
        acme,
        http,
        limits,
        admin,
        nameservers: nameservers.unwrap_or_default().into_iter().map(|server| server.0).collect(),
        packet,
        access_log,
        access_log_format: access_log_format.unwrap_or_default(),
    })
}

fn listeners(
    tables: Vec<Located<schema::Listener>>,
    diagnostics: &mut Diagnostics,
) -> Vec<Arc<Listener>> {
    if tables.is_empty() {
        diagnostics.report_whole(
            "listener",
            "nothing to listen on; add [[listener]] with address = \"[::]:443\", or --listen ADDR",
        );
    }
    let mut built: Vec<Located<Listener>> = Vec::new();
    for Located { position, value: table } in tables {
        report_missing_address("listener", table.address.is_none(), &position, diagnostics);
        let position = table.address.as_ref().map_or(position, |item| item.position.clone());
        let client_hello_timeout =
            diagnostics.value("listener.client_hello_timeout", table.client_hello_timeout);
        let proxy_protocol_from =
            diagnostics.values("listener.proxy_protocol_from", table.proxy_protocol_from);
        let starttls = diagnostics.value("listener.starttls", table.starttls);
        let Some(address) = diagnostics.value("listener.address", table.address) else { continue };
        if let Some(first) = built.iter().find(|other| other.value.address == address) {
            let first = diagnostics.origin(&first.position);
            let message = format!("{address} is listened on twice, at {first} too; remove one");
            diagnostics.report(&position, "listener.address", message);
        }
        let listener = Listener {
            address,
            client_hello_timeout: client_hello_timeout.unwrap_or(defaults::CLIENT_HELLO_TIMEOUT),
            proxy_protocol_from: proxy_protocol_from.unwrap_or_default(),
            starttls: starttls.flatten(),
        };
        built.push(Located { position, value: listener });
    }
    built.into_iter().map(|listener| Arc::new(listener.value)).collect()
}

fn report_missing_address(
    table: &str,
    is_missing: bool,
    position: &Position,
    diagnostics: &mut Diagnostics,
) {
    if is_missing {
        let message = "is missing; add an address, such as address = \"[::]:443\"";
        diagnostics.report(position, &format!("{table}.address"), message);
    }
}
