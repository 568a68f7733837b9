//! Flags that win over the file. A list given by flags replaces the file's list.

use std::fmt::Display;

use clap::Args;

use super::Origin;
use super::acme::DraftAcme;
use super::limits::DraftLimits;
use super::validate::{Draft, DraftListener, Located};

mod route_syntax;

/// Configuration by flag; each has a key of the same name in the file.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Configuration (wins over the file)")]
pub struct Overrides {
    /// Name of this agent among others of the host, for its pins in bpffs [default: default]
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,

    /// Engine: auto, packet, sockmap, splice or copy [default: auto]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,

    /// Validations that a route says nothing about: owned, never or always [default: owned]
    #[arg(long, value_name = "WHOSE")]
    acme_bypass: Option<String>,

    /// Address to accept on, such as `[::]:443`; may be repeated, replaces the file's listeners
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,

    /// Route, such as 'a.test,www.a.test=10.0.0.5:443;acme=backend;send_proxy=v2'; may be repeated,
    /// replaces the file's routes
    #[arg(long, value_name = "NAMES=BACKENDS[;KEY=VALUE]…")]
    route: Vec<String>,

    /// Names whose TLS ends here, such as 'front.test=127.0.0.1:8080;challenge=http-01'; may be
    /// repeated, replaces the file's
    #[arg(long, value_name = "NAMES=BACKENDS[;KEY=VALUE]…")]
    terminate: Vec<String>,

    /// The ACME directory that certificates are ordered from; naming it agrees to the CA's terms
    #[arg(long, value_name = "URL")]
    acme_directory: Option<String>,

    /// Contact of the ACME account, such as mailto:ops@example.com; may be repeated
    #[arg(long, value_name = "URL")]
    acme_contact: Vec<String>,

    /// Root certificate of the ACME server's own HTTPS [default: the system's]
    #[arg(long, value_name = "FILE")]
    acme_ca_file: Option<String>,

    /// Certificate profile to ask the CA for [default: its own]
    #[arg(long, value_name = "NAME")]
    acme_profile: Option<String>,

    /// Folder for the account and the certificates [default: /var/lib/snisplit]
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<String>,

    /// Address for HTTP-01 validations; everything else there is redirected to https
    /// [default: none]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,

    /// Time from accept to a whole ClientHello, on every listener [default: 5s]
    #[arg(long, value_name = "TIME")]
    client_hello_timeout: Option<String>,

    /// Network whose members must send a PROXY header and all others must not, on every listener;
    /// may be repeated
    #[arg(long, value_name = "CIDR")]
    proxy_protocol_from: Vec<String>,

    /// What clients say before TLS, on every listener: off or postgres [default: off]
    #[arg(long, value_name = "PROTOCOL")]
    starttls: Option<String>,

    /// Longest ClientHello, in bytes [default: 65536]
    #[arg(long, value_name = "BYTES")]
    max_client_hello_bytes: Option<i64>,

    /// Time that each attempt to reach a back end may take [default: 5s]
    #[arg(long, value_name = "TIME")]
    connect_timeout: Option<String>,

    /// Time that a back end may be silent behind the hello while another one is left, or off
    /// [default: off]
    #[arg(long, value_name = "TIME")]
    first_byte_timeout: Option<String>,

    /// Connections at once [default: 100000]
    #[arg(long, value_name = "N")]
    max_connections: Option<i64>,

    /// Connections that have not said their hello, at once [default: 10000]
    #[arg(long, value_name = "N")]
    max_pending_handshakes: Option<i64>,

    /// Flows of one IPv4 address or IPv6 /64, at once [default: 1000]
    #[arg(long, value_name = "N")]
    max_connections_per_source: Option<i64>,

    /// New connections a second; 0 is no limit [default: 0]
    #[arg(long, value_name = "N")]
    accept_rate: Option<i64>,

    /// Time without a byte after which a flow is reset, or off [default: off]
    #[arg(long, value_name = "TIME")]
    idle_timeout: Option<String>,

    /// Idle time before TCP probes a peer, or off [default: 60s]
    #[arg(long, value_name = "TIME")]
    keepalive: Option<String>,

    /// Time that sent data may stay unacknowledged, or off for the kernel's own [default: off]
    #[arg(long, value_name = "TIME")]
    user_timeout: Option<String>,

    /// Network that back ends may be in; may be repeated [default: anywhere]
    #[arg(long, value_name = "CIDR")]
    backends_allowed: Vec<String>,

    /// Name server for names of back ends; may be repeated [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "ADDR")]
    nameserver: Vec<String>,

    /// Time that running connections may take to end after SIGTERM [default: 30s]
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<String>,

    /// Address of /metrics and /healthz [default: none]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,

    /// File to append a line to for each connection; - is standard output [default: none]
    #[arg(long, value_name = "FILE")]
    access_log: Option<String>,

    /// Lines of the access log: json or text [default: json]
    #[arg(long, value_name = "FORMAT")]
    access_log_format: Option<String>,
}

impl Overrides {
    pub(super) fn apply_to(&self, draft: &mut Draft) {
        set(&mut draft.instance, "--instance", self.instance.as_ref());
        set(&mut draft.engine, "--engine", self.engine.as_ref());
        set(&mut draft.acme_bypass, "--acme-bypass", self.acme_bypass.as_ref());
        set(
            &mut draft.client_hello_timeout,
            "--client-hello-timeout",
            self.client_hello_timeout.as_ref(),
        );
        set(&mut draft.drain_timeout, "--drain-timeout", self.drain_timeout.as_ref());
        set(&mut draft.admin, "--admin", self.admin.as_ref());
        set(&mut draft.access_log, "--access-log", self.access_log.as_ref());
        let format = self.access_log_format.as_ref();
        set(&mut draft.access_log_format, "--access-log-format", format);
        self.apply_limits(&mut draft.limits);
        if !self.nameserver.is_empty() {
            draft.nameservers = located_items("--nameserver", &self.nameserver);
        }
        if !self.listen.is_empty() {
            draft.listeners = self.listen.iter().map(draft_listener).collect();
        }
        if !self.proxy_protocol_from.is_empty() {
            let networks = located_items("--proxy-protocol-from", &self.proxy_protocol_from);
            for listener in &mut draft.listeners {
                listener.proxy_protocol_from = networks.clone();
            }
        }
        for listener in &mut draft.listeners {
            set(&mut listener.starttls, "--starttls", self.starttls.as_ref());
        }
        if !self.route.is_empty() {
            draft.routes = self.route.iter().map(|text| route_syntax::parse_route(text)).collect();
        }
        if !self.terminate.is_empty() {
            let terminates = self.terminate.iter().map(|text| route_syntax::parse_terminate(text));
            draft.terminates = terminates.collect();
        }
        set(&mut draft.http, "--http", self.http.as_ref());
        self.apply_acme(&mut draft.acme);
    }

    fn apply_acme(&self, draft: &mut Option<DraftAcme>) {
        let single_valued =
            [&self.acme_directory, &self.acme_ca_file, &self.acme_profile, &self.state_dir];
        if single_valued.iter().all(|flag| flag.is_none()) && self.acme_contact.is_empty() {
            return;
        }
        let acme = draft.get_or_insert_default();
        set(&mut acme.directory, "--acme-directory", self.acme_directory.as_ref());
        set(&mut acme.ca_file, "--acme-ca-file", self.acme_ca_file.as_ref());
        set(&mut acme.profile, "--acme-profile", self.acme_profile.as_ref());
        set(&mut acme.state_dir, "--state-dir", self.state_dir.as_ref());
        if !self.acme_contact.is_empty() {
            acme.contact = located_items("--acme-contact", &self.acme_contact);
        }
    }
}

impl Overrides {
    fn apply_limits(&self, limits: &mut DraftLimits) {
        set(&mut limits.connect_timeout, "--connect-timeout", self.connect_timeout.as_ref());
        set(
            &mut limits.first_byte_timeout,
            "--first-byte-timeout",
            self.first_byte_timeout.as_ref(),
        );
        set(&mut limits.idle_timeout, "--idle-timeout", self.idle_timeout.as_ref());
        set(&mut limits.keepalive, "--keepalive", self.keepalive.as_ref());
        set(&mut limits.user_timeout, "--user-timeout", self.user_timeout.as_ref());
        set(
            &mut limits.max_client_hello_bytes,
            "--max-client-hello-bytes",
            self.max_client_hello_bytes.as_ref(),
        );
        set(&mut limits.max_connections, "--max-connections", self.max_connections.as_ref());
        set(
            &mut limits.max_pending_handshakes,
            "--max-pending-handshakes",
            self.max_pending_handshakes.as_ref(),
        );
        set(
            &mut limits.max_connections_per_source,
            "--max-connections-per-source",
            self.max_connections_per_source.as_ref(),
        );
        set(&mut limits.accept_rate, "--accept-rate", self.accept_rate.as_ref());
        if !self.backends_allowed.is_empty() {
            limits.backends_allowed = located_items("--backends-allowed", &self.backends_allowed);
        }
    }
}

fn located_items(name: &str, values: &[String]) -> Vec<Located<String>> {
    let item = |value: &String| Located { origin: flag_origin(name, value), value: value.clone() };
    values.iter().map(item).collect()
}

fn flag_origin(name: &str, value: impl Display) -> Origin {
    Origin::Flag(format!("{name} {value}"))
}

fn set<T: Clone + Display>(target: &mut Option<Located<T>>, name: &str, value: Option<&T>) {
    if let Some(value) = value {
        *target = Some(Located { origin: flag_origin(name, value), value: value.clone() });
    }
}

fn draft_listener(address: &String) -> DraftListener {
    let address = Located { origin: flag_origin("--listen", address), value: address.clone() };
    DraftListener {
        address,
        client_hello_timeout: None,
        proxy_protocol_from: Vec::new(),
        starttls: None,
    }
}
