//! Knot, an authoritative name server among the back ends.

use std::net::SocketAddr;
use std::process::{Command, Output};

use crate::lab::{Lab, backend};
use crate::peer::{ServerProcess, write_file};
use crate::wait::wait_until;

/// TSIG key that may update a zone: its name, and its secret in base64.
pub const TSIG: (&str, &str) = ("acme-key", "c25pc3BsaXQgdGVzdCBrZXksIG5vdCBhIHNlY3JldCE=");

/// An authoritative name server with one zone.
#[derive(Debug)]
pub struct DnsServer {
    server: ServerProcess,
    zone: String,
    control_socket: String,
}

impl DnsServer {
    /// Starts the name server with an empty zone, which [`TSIG`] may update.
    pub fn start(lab: &Lab, zone: &str) -> Self {
        let folder = lab.dir().display();
        let records = format!(
            "$ORIGIN {zone}.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 600 1\n@ NS ns\nns A {}\n",
            address().ip()
        );
        let file = write_file(lab, &format!("{zone}.zone"), &records);
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
        let file = write_file(lab, "knot.conf", &config);
        let server =
            ServerProcess::start_backend(lab, address(), Command::new("knotd").arg("-c").arg(file));
        let dns = Self { server, zone: zone.to_owned(), control_socket: control };
        wait_until("Knot to accept commands", || {
            dns.knotc_output(&["zone-read", zone]).status.success().then_some(())
        });
        dns
    }

    /// Replaces all records of one type at a name of the zone.
    pub fn set_records(&self, owner: &str, ttl: u32, kind: &str, data: &[&str]) {
        self.run_knotc(&["zone-begin", &self.zone]);
        self.run_knotc(&["zone-unset", &self.zone, owner, kind]);
        for one in data {
            self.run_knotc(&["zone-set", &self.zone, owner, &ttl.to_string(), kind, one]);
        }
        self.run_knotc(&["zone-commit", &self.zone]);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// All records of the zone.
    pub fn read_zone(&self) -> String {
        let done = self.knotc_output(&["zone-read", &self.zone]);
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Path of the socket that knotc(8) uses.
    pub fn control_socket(&self) -> &str {
        &self.control_socket
    }

    fn run_knotc(&self, args: &[&str]) {
        let done = self.knotc_output(args);
        let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        let had_none_before = args[0] == "zone-unset" && output.contains("no such");
        let log = self.server.log();
        assert!(done.status.success() || had_none_before, "knotc {args:?}: {output}\n{log}");
    }

    fn knotc_output(&self, args: &[&str]) -> Output {
        Command::new("knotc").args(["-s", &self.control_socket]).args(args).output().unwrap()
    }
}

/// Address of the name server.
pub fn address() -> SocketAddr {
    backend(53)
}
