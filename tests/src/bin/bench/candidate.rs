//! The candidates of the benchmark, each started as its users would start it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::lab::{Lab, PROXY, backend};
use snisplit_tests::wait::until;

use crate::BACKEND_PORT;

/// What stands between client and back end; dropping it ends it.
pub(crate) enum Candidate {
    Direct,
    Agent { _runs: Agent },
    Haproxy(Child),
}

impl Candidate {
    pub(crate) fn start(lab: &Lab, name: &str) -> Self {
        match name {
            "direct" => Self::Direct,
            "haproxy" => Self::Haproxy(haproxy(lab)),
            engine => {
                let flags = ["--engine", engine, "--route", "a.test=10.91.2.2:8001"];
                Self::Agent { _runs: Agent::start_plain(lab, &flags) }
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Direct => backend(BACKEND_PORT),
            Self::Agent { .. } | Self::Haproxy(_) => agent::address(),
        }
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Self::Haproxy(child) = self {
            let _gone_already = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// HAProxy, as its manual routes by SNI; two threads like the agent's two workers.
fn haproxy(lab: &Lab) -> Child {
    let config = format!(
        "global\n maxconn 4000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n \
         timeout server 1m\n\
         frontend f\n bind {PROXY}:{}\n tcp-request inspect-delay 5s\n \
         tcp-request content accept if {{ req.ssl_hello_type 1 }}\n \
         use_backend b if {{ req.ssl_sni -i a.test }}\n\
         backend b\n server s {}\n",
        agent::PORT,
        backend(BACKEND_PORT)
    );
    let file = lab.folder().join("haproxy.cfg");
    fs::write(&file, config).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = lab.proxy(|| command.spawn()).unwrap();
    until("HAProxy", || {
        assert!(child.try_wait().unwrap().is_none(), "HAProxy does not run");
        lab.proxy(|| TcpStream::connect((PROXY, agent::PORT))).ok()
    });
    child
}

pub(crate) fn haproxy_version() -> String {
    let done = Command::new("haproxy").arg("-v").output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.split_whitespace().nth(2).unwrap_or_default().to_owned()
}
