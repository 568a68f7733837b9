//! Pebble, a real ACME server, where the client is: it looks names up, and all of them are at the
//! agent, so that is where it validates.

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

/// Clients of a CA may ask too early and then wait for seconds.
const ISSUANCE_TIMEOUT: Duration = Duration::from_secs(60);

/// An ACME server and the name server that it asks.
#[derive(Debug)]
pub struct Pebble {
    server: ServerProcess,
    dns_server: ServerProcess,
    ca_file: PathBuf,
    root_file: PathBuf,
}

/// What Pebble may be told.
#[derive(Clone, Copy, Debug)]
pub struct PebbleConfig {
    /// How long its certificates are good for, seconds.
    pub validity_seconds: u64,
    /// Key id and HMAC key that a new account must be bound to.
    pub eab: Option<(&'static str, &'static str)>,
    /// Another name server than the one that sends everything to the agent.
    pub name_server: Option<SocketAddr>,
    /// How many good nonces of a hundred it says are bad.
    pub bad_nonce_percent: u32,
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
    /// Starts it with the usual terms.
    pub fn start(lab: &Lab) -> Self {
        Self::start_with(lab, PebbleConfig::default())
    }

    /// Starts it.
    pub fn start_with(lab: &Lab, settings: PebbleConfig) -> Self {
        let at = |port| SocketAddr::new(IpAddr::V4(CLIENT), port);
        let mut dns = Command::new("pebble-challtestsrv");
        dns.args(["-dns01", &at(8053).to_string(), "-management", &at(8055).to_string()]);
        dns.args(["-defaultIPv4", &PROXY.to_string(), "-defaultIPv6", ""]);
        dns.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let dns_server = ServerProcess::start_at_client(lab, at(8055), &mut dns);
        let ca_file = ensure_ca(lab);
        let (cert, key) = issue_https_certificate(lab, &ca_file);
        let bindings = settings.eab.map(|(id, secret)| (id.to_owned(), secret.into()));
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

    /// Where its directory is.
    pub fn directory(&self) -> String {
        format!("https://{CLIENT}:14000/dir")
    }

    /// The root that its own HTTPS is signed by.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// Stops the name server that it asks before it validates.
    pub fn pause_validation(&self) {
        self.dns_server.signal(Signal::STOP);
    }

    /// Lets that go on.
    pub fn resume_validation(&self) {
        self.dns_server.signal(Signal::CONT);
    }

    /// How many accounts, or orders, it was asked for.
    pub fn logged_count(&self, what: &str) -> usize {
        let log = self.server.log();
        let line = format!(" {what} in ");
        let counts = log.lines().filter(|text| text.contains(&line));
        let number =
            |text: &str| text.split("There are now ").nth(1)?.split(' ').next()?.parse().ok();
        counts.filter_map(number).next_back().unwrap_or(0)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Returns the certificate that the agent serves for a name, to a client that trusts this CA only.
    ///
    /// # Errors
    ///
    /// What the client said, if it did not accept the certificate.
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

    /// Waits until that is so.
    #[track_caller]
    pub fn wait_for_certificate(&self, lab: &Lab, name: &str) -> ServedCertificate {
        wait_until_within(ISSUANCE_TIMEOUT, &format!("a certificate for {name}"), || {
            self.served_certificate(lab, name).ok()
        })
    }
}

/// Flags for an agent that orders from it, started or not; the state is in the lab's folder.
pub fn acme_flags(lab: &Lab) -> Vec<String> {
    let state = lab.dir().join("state");
    let words = [
        ("--acme-directory", format!("https://{CLIENT}:14000/dir")),
        ("--acme-ca-file", ensure_ca(lab).display().to_string()),
        ("--acme-contact", "mailto:ops@example.com".into()),
        ("--state-dir", state.display().to_string()),
    ];
    words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

/// A certificate that was served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedCertificate {
    pem: String,
}

impl ServedCertificate {
    /// What `openssl x509` prints about it.
    pub fn x509_text(&self, lab: &Lab, what: &[&str]) -> String {
        let file = write_file(lab, "served.pem", &self.pem);
        let mut command = Command::new("openssl");
        let done = command.args(["x509", "-noout", "-in"]).arg(file).args(what).output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

/// What an agent says on its admin port, and the status.
pub fn admin_get(lab: &Lab, path: &str) -> (String, u16) {
    let url = format!("http://127.0.0.1:9901{path}");
    let mut curl = Command::new("curl");
    curl.args(["-s", "-m", "5", "-w", "\n%{http_code}", &url]);
    let done = lab.in_proxy(|| curl.output()).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (body.to_owned(), status.parse().unwrap())
}

/// Where the agent of `flags` keeps a certificate.
pub fn certificate_dir(lab: &Lab, label: &str) -> PathBuf {
    lab.dir().join(format!("state/{CLIENT}_14000/certificates/{label}"))
}

/// What it says of it.
pub fn certificate_status(lab: &Lab, label: &str) -> Option<Value> {
    let text = fs::read(certificate_dir(lab, label).join("status.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn openssl(lab: &Lab, words: &[&str]) {
    let mut command = Command::new("openssl");
    let done = command.args(words).current_dir(lab.dir()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

const NEW_KEY_ARGS: [&str; 6] =
    ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days"];

/// The authority that signs Pebble's own HTTPS certificate, made when it is first asked for.
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
