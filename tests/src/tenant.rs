//! Tenants: back ends that order their own certificates through the agent.

use std::process::Command;

use crate::lab::{Lab, backend};
use crate::pebble::Pebble;
use crate::peer::{ServerProcess, packaged_program, write_file};

/// What a listener expects at the start of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerMode {
    /// TLS.
    Tls,
    /// A PROXY header, and TLS behind it.
    ProxyProtocol,
}

/// Starts Traefik, which orders a certificate for each name by TLS-ALPN-01.
pub fn traefik(
    lab: &Lab,
    pebble: &Pebble,
    port: u16,
    names: &[&str],
    mode: ListenerMode,
) -> ServerProcess {
    let router = |name: &&str| {
        let key = name.replace('.', "-");
        format!(
            "    {key}:\n      rule: 'Host(`{name}`)'\n      service: ping@internal\n      \
             tls:\n        certResolver: le\n"
        )
    };
    let routers: String = names.iter().map(router).collect();
    let file = write_file(lab, "routers.yml", &format!("http:\n  routers:\n{routers}"));
    let mut command = Command::new(packaged_program("traefik"));
    command.args(["--ping=true", "--ping.manualrouting=true", "--global.checknewversion=false"]);
    command.arg(format!("--providers.file.filename={}", file.display()));
    command.arg(format!("--entrypoints.web.address={}", backend(port)));
    if mode == ListenerMode::ProxyProtocol {
        command.arg("--entrypoints.web.proxyprotocol.insecure=true");
    }
    let resolver = "--certificatesresolvers.le.acme";
    command.arg(format!("{resolver}.caserver={}", pebble.directory()));
    command.arg(format!("{resolver}.storage={}", lab.dir().join("acme.json").display()));
    command
        .args([format!("{resolver}.email=a@example.com"), format!("{resolver}.tlschallenge=true")]);
    command.env("LEGO_CA_CERTIFICATES", pebble.ca_file());
    ServerProcess::start_backend(lab, backend(port), &mut command)
}

/// Starts Caddy, which orders a certificate for each name by TLS-ALPN-01.
pub fn caddy(
    lab: &Lab,
    pebble: &Pebble,
    port: u16,
    names: &[&str],
    mode: ListenerMode,
) -> ServerProcess {
    let sites: Vec<String> = names.iter().map(|name| format!("https://{name}:{port}")).collect();
    let wrappers = match mode {
        ListenerMode::Tls => "",
        ListenerMode::ProxyProtocol => {
            "servers {\n listener_wrappers {\n proxy_protocol\n tls\n }\n }\n"
        }
    };
    let config = format!(
        "{{\n admin off\n persist_config off\n auto_https disable_redirects\n \
         storage file_system {folder}/caddy\n {wrappers}}}\n\
         {sites} {{\n tls {{\n issuer acme {{\n email a@example.com\n dir {dir}\n trusted_roots {ca}\n \
         disable_http_challenge\n alt_tlsalpn_port {port}\n }}\n }}\n respond \"Caddy here\"\n}}\n",
        folder = lab.dir().display(),
        sites = sites.join(", "),
        dir = pebble.directory(),
        ca = pebble.ca_file().display(),
    );
    let file = write_file(lab, "Caddyfile.acme", &config);
    let mut command = Command::new(packaged_program("caddy"));
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
    ServerProcess::start_backend(lab, backend(port), &mut command)
}

/// Runs `lego --tls`, which orders one certificate for all names.
///
/// # Errors
///
/// The output of lego, if it got no certificate.
pub fn lego(lab: &Lab, pebble: &Pebble, port: u16, names: &[&str]) -> Result<(), String> {
    lego_with_challenge(lab, pebble, "tls", port, names)
}

/// Runs lego with this challenge, `tls` or `http`, to order one certificate for all names.
///
/// # Errors
///
/// The output of lego, if it got no certificate.
pub fn lego_with_challenge(
    lab: &Lab,
    pebble: &Pebble,
    challenge: &str,
    port: u16,
    names: &[&str],
) -> Result<(), String> {
    let mut command = Command::new("timeout");
    command.args(["60", "lego", "--server", &pebble.directory(), "--email", "a@example.com"]);
    command.arg("--path").arg(lab.dir().join(format!("lego-{port}-{}", names[0])));
    command.args(["--accept-tos", &format!("--{challenge}")]);
    command.args([&format!("--{challenge}.port"), &backend(port).to_string()]);
    names.iter().for_each(|name| _ = command.args(["--domains", name]));
    command.arg("run").env("LEGO_CA_CERTIFICATES", pebble.ca_file());
    let done = lab.in_backends(|| command.output()).unwrap();
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()),
    }
}
