//! Knot, a real authoritative name server, among the back ends.

use std::net::SocketAddr;
use std::process::{Command, Output};

use crate::lab::{Lab, backend};
use crate::peer::{Peer, written};
use crate::wait::until;

/// The key that may update a zone: its name, and its secret in base64.
pub const TSIG: (&str, &str) = ("acme-key", "c25pc3BsaXQgdGVzdCBrZXksIG5vdCBhIHNlY3JldCE=");

/// A name server that is the authority for one zone.
#[derive(Debug)]
pub struct Dns {
    runs: Peer,
    zone: String,
    control: String,
}

impl Dns {
    /// Starts it with an empty zone, which [`TSIG`] may update.
    pub fn start(lab: &Lab, zone: &str) -> Self {
        let folder = lab.folder().display();
        let records = format!(
            "$ORIGIN {zone}.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 600 1\n@ NS ns\nns A {}\n",
            address().ip()
        );
        let file = written(lab, &format!("{zone}.zone"), &records);
        let control = format!("{folder}/knot.sock");
        let config = format!(
            "server:\n  rundir: {folder}\n  listen: {ip}@{port}\n\
             control:\n  listen: {control}\n\
             database:\n  storage: {folder}\n\
             log:\n- target: stderr\n  any: info\n\
             key:\n- id: {key}\n  algorithm: hmac-sha256\n  secret: {secret}\n\
             acl:\n- id: update\n  key: {key}\n  action: update\n\
             zone:\n- domain: {zone}\n  file: {file}\n  acl: update\n  zonefile-load: whole\n  \
             zonefile-sync: -1\n",
            ip = address().ip(),
            port = address().port(),
            key = TSIG.0,
            secret = TSIG.1,
            file = file.display(),
        );
        let file = written(lab, "knot.conf", &config);
        let runs = Peer::start(lab, address(), Command::new("knotd").arg("-c").arg(file));
        let dns = Self { runs, zone: zone.to_owned(), control };
        until("Knot to take orders", || {
            dns.knotc(&["zone-read", zone]).status.success().then_some(())
        });
        dns
    }

    /// Replaces all records of one type at a name of the zone.
    pub fn set(&self, owner: &str, ttl: u32, kind: &str, data: &[&str]) {
        self.control(&["zone-begin", &self.zone]);
        self.control(&["zone-unset", &self.zone, owner, kind]);
        for one in data {
            self.control(&["zone-set", &self.zone, owner, &ttl.to_string(), kind, one]);
        }
        self.control(&["zone-commit", &self.zone]);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.runs.pid()
    }

    /// All its records.
    pub fn zone(&self) -> String {
        let done = self.knotc(&["zone-read", &self.zone]);
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Where `knotc` talks to it.
    pub fn control_socket(&self) -> &str {
        &self.control
    }

    fn control(&self, words: &[&str]) {
        let done = self.knotc(words);
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        let had_none_before = words[0] == "zone-unset" && said.contains("no such");
        let log = self.runs.log();
        assert!(done.status.success() || had_none_before, "knotc {words:?}: {said}\n{log}");
    }

    fn knotc(&self, words: &[&str]) -> Output {
        Command::new("knotc").args(["-s", &self.control]).args(words).output().unwrap()
    }
}

/// Where it answers.
pub fn address() -> SocketAddr {
    backend(53)
}
