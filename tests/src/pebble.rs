//! Pebble, an ACME server in the client's namespace. Its name server answers every name with the agent's address, so Pebble
//! validates at the agent.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agent;
use crate::lab::{CLIENT, Lab, PROXY};
use crate::peer::{ServerProcess, write_file};
use crate::wait::{wait_until, wait_until_within};

/// Timeout for a certificate. An ACME client that polls too early waits for seconds.
const ISSUANCE_TIMEOUT: Duration = Duration::from_secs(60);

/// A running Pebble and its name server.
#[derive(Debug)]
pub struct Pebble {
    server: ServerProcess,
    dns_server: ServerProcess,
    ca_file: PathBuf,
    root_file: PathBuf,
}

/// Settings of a Pebble.
#[derive(Clone, Copy, Debug)]
pub struct PebbleConfig {
    /// Validity of its certificates, in seconds.
    pub validity_seconds: u64,
    /// Key that a new account has to be bound to (external account binding).
    pub eab: Option<EabKey>,
    /// Name server to use instead of the one that answers with the agent's address.
    pub name_server: Option<SocketAddr>,
    /// Percentage of valid nonces that it rejects.
    pub bad_nonce_percent: u32,
}

/// Key for external account binding (RFC 8555 §7.3.4).
#[derive(Clone, Copy, Debug)]
pub struct EabKey {
    /// Key identifier.
    pub id: &'static str,
    /// HMAC key in base64url.
    pub hmac: &'static str,
}

impl Default for PebbleConfig {
    fn default() -> Self {
        Self {
            validity_seconds: 90 * 24 * 60 * 60,
            eab: None,
            name_server: None,
            bad_nonce_percent: 5,
        }
    }
}

impl Pebble {
    /// Starts a Pebble with default settings.
    pub fn start(lab: &Lab) -> Self {
        Self::start_with(lab, PebbleConfig::default())
    }

    /// Starts a Pebble with these settings.
    pub fn start_with(lab: &Lab, settings: PebbleConfig) -> Self {
        let at = |port| SocketAddr::new(IpAddr::V4(CLIENT), port);
        let mut dns = Command::new("pebble-challtestsrv");
        dns.args(["-dns01", &at(8053).to_string(), "-management", &at(8055).to_string()]);
        dns.args(["-defaultIPv4", &PROXY.to_string(), "-defaultIPv6", ""]);
        dns.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let dns_server = ServerProcess::start_at_client(lab, at(8055), &mut dns);
        let ca_file = ensure_ca(lab);
        let (cert, key) = issue_https_certificate(lab, &ca_file);
        let bindings = settings.eab.map(|key| (key.id.to_owned(), key.hmac.into()));
        let bindings: serde_json::Map<String, Value> = bindings.into_iter().collect();
        let config = json!({ "pebble": {
            "listenAddress": at(14000).to_string(), "managementListenAddress": at(15000).to_string(),
            "certificate": cert, "privateKey": key, "httpPort": 80, "tlsPort": 443,
            "certificateValidityPeriod": settings.validity_seconds,
            "externalAccountBindingRequired": settings.eab.is_some(),
            "externalAccountMACKeys": bindings,
        }});
        let config = write_file(lab, "pebble.json", &config.to_string());
        let mut pebble = Command::new("pebble");
        let server = settings.name_server.unwrap_or(at(8053)).to_string();
        pebble.arg("-config").arg(config).args(["-dnsserver", &server]);
        pebble.env("PEBBLE_VA_NOSLEEP", "1");
        pebble.env("PEBBLE_WFE_NONCEREJECT", settings.bad_nonce_percent.to_string());
        let server = ServerProcess::start_at_client(lab, at(14000), &mut pebble);
        let url = format!("https://{}/roots/0", at(15000));
        let root = wait_until("Pebble's root", || {
            let mut curl = Command::new("curl");
            let done = lab.in_client(|| curl.args(["-sSkf", "-m", "5", &url]).output()).unwrap();
            done.status.success().then_some(done.stdout)
        });
        let path = lab.dir().join("pebble-root.pem");
        fs::write(&path, root).unwrap();
        Self { server, dns_server, ca_file, root_file: path }
    }

    /// URL of its ACME directory.
    pub fn directory(&self) -> String {
        format!("https://{CLIENT}:14000/dir")
    }

    /// Root certificate of its own HTTPS.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// Stops its name server, which it queries before it validates.
    pub fn pause_validation(&self) {
        self.dns_server.signal(Signal::STOP);
    }

    /// Continues its name server.
    pub fn resume_validation(&self) {
        self.dns_server.signal(Signal::CONT);
    }

    /// Number of its `accounts` or `orders` so far.
    pub fn logged_count(&self, what: &str) -> usize {
        let log = self.server.log();
        let line = format!(" {what} in ");
        let counts = log.lines().filter(|text| text.contains(&line));
        let number =
            |text: &str| text.split("There are now ").nth(1)?.split(' ').next()?.parse().ok();
        counts.filter_map(number).next_back().unwrap_or(0)
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Connects through the agent, with trust in this CA only. Returns the certificate that is served for a name.
    ///
    /// # Errors
    ///
    /// The output of openssl, if the certificate is not valid for the name, or there is none.
    pub fn served_certificate(&self, lab: &Lab, name: &str) -> Result<ServedCertificate, String> {
        let mut command = Command::new("timeout");
        command.args(["20", "openssl", "s_client", "-servername", name, "-verify_hostname", name]);
        command.args(["-verify_return_error", "-showcerts", "-connect"]);
        command.arg(agent::address().to_string()).arg("-CAfile").arg(&self.root_file);
        command.stdin(std::process::Stdio::null());
        let done = lab.in_client(|| command.output()).unwrap();
        let output =
            [done.stdout, done.stderr].map(|out| String::from_utf8_lossy(&out).into_owned());
        let output = output.concat();
        let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
        let (Some(begin), Some(end)) = (output.find(begin), output.find(end)) else {
            return Err(output);
        };
        if !output.contains("Verify return code: 0 (ok)") {
            return Err(output);
        }
        Ok(ServedCertificate { pem: format!("{}-----END CERTIFICATE-----\n", &output[begin..end]) })
    }

    /// Waits until a valid certificate is served for a name.
    #[track_caller]
    pub fn wait_for_certificate(&self, lab: &Lab, name: &str) -> ServedCertificate {
        wait_until_within(ISSUANCE_TIMEOUT, &format!("a certificate for {name}"), || {
            self.served_certificate(lab, name).ok()
        })
    }
}

/// Flags for an agent that orders from the lab's Pebble, which may not run yet. The state directory is in the lab's folder.
pub fn acme_flags(lab: &Lab) -> Vec<String> {
    let state = lab.dir().join("state");
    let flags = [
        ("--acme-directory", format!("https://{CLIENT}:14000/dir")),
        ("--acme-ca-file", ensure_ca(lab).display().to_string()),
        ("--acme-contact", "mailto:ops@example.com".into()),
        ("--state-dir", state.display().to_string()),
    ];
    flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

/// A certificate that a server has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedCertificate {
    pem: String,
}

impl ServedCertificate {
    /// Output of `openssl x509` with these arguments.
    pub fn x509_text(&self, lab: &Lab, args: &[&str]) -> String {
        let file = write_file(lab, "served.pem", &self.pem);
        let mut command = Command::new("openssl");
        let done = command.args(["x509", "-noout", "-in"]).arg(file).args(args).output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

/// Body and status of a request to an agent's admin port.
pub fn admin_get(lab: &Lab, path: &str) -> (String, u16) {
    let url = format!("http://127.0.0.1:9901{path}");
    let mut curl = Command::new("curl");
    curl.args(["-s", "-m", "5", "-w", "\n%{http_code}", &url]);
    let done = lab.in_proxy(|| curl.output()).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (body.to_owned(), status.parse().unwrap())
}

/// Folder of a certificate in the state directory of [`acme_flags`].
pub fn certificate_dir(lab: &Lab, label: &str) -> PathBuf {
    lab.dir().join(format!("state/{CLIENT}_14000/certificates/{label}"))
}

/// Contents of a certificate's `status.json`, if there is one.
pub fn certificate_status(lab: &Lab, label: &str) -> Option<Value> {
    let text = fs::read(certificate_dir(lab, label).join("status.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn openssl(lab: &Lab, args: &[&str]) {
    let mut command = Command::new("openssl");
    let done = command.args(args).current_dir(lab.dir()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

const NEW_KEY_ARGS: [&str; 6] =
    ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days"];

/// Root certificate of Pebble's own HTTPS, which the first call creates.
fn ensure_ca(lab: &Lab) -> PathBuf {
    let path = lab.dir().join("ca.pem");
    if path.exists() {
        return path;
    }
    let out = ["3", "-subj", "/CN=lab", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(lab, &[&["req", "-x509"], &NEW_KEY_ARGS[..], &out].concat());
    path
}

fn issue_https_certificate(lab: &Lab, ca_file: &Path) -> (PathBuf, PathBuf) {
    let names = format!("subjectAltName=IP:{CLIENT},DNS:pebble.test");
    let by = ["req", "-x509", "-CA", ca_file.to_str().unwrap(), "-CAkey", "ca.key"];
    let kind = ["2", "-subj", "/CN=pebble", "-addext", "basicConstraints=critical,CA:FALSE"];
    let out = ["-addext", &names, "-keyout", "https.key", "-out", "https.pem"];
    openssl(lab, &[&by[..], &NEW_KEY_ARGS, &kind, &out].concat());
    (lab.dir().join("https.pem"), lab.dir().join("https.key"))
}
