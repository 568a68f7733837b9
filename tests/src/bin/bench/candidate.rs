//! Candidates of the benchmark, each configured as its manual says, with a thread or a worker for each core.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::lab::{Lab, PROXY, backend};
use snisplit_tests::peer::{packaged_program, write_file};
use snisplit_tests::wait::wait_until;

use crate::links::{DIRECT_BACKEND, NatRules, PacketProgramsGuard, assert_no_programs};
use crate::load::{Target, complete_connection};
use crate::ports::PACKET_ENGINE_PORTS;
use crate::redirect::Redirect;

/// All candidates, in the order of the tables.
pub(crate) const ALL: [&str; 11] = [
    "direct",
    "forward",
    "copy",
    "splice",
    "sockmap",
    "packet",
    "auto",
    "haproxy",
    "haproxy-splice",
    "nginx",
    "traefik",
];

/// Candidates that are compared with a direct link. The direct link against itself shows the error of the comparison.
pub(crate) const COMPARED_WITH_DIRECT: [&str; 4] = ["packet", "redirect", "forward", "direct"];

/// Candidates with these names; all if there are no names.
pub(crate) fn selected(all: &[&'static str], names: &[String]) -> Vec<&'static str> {
    let is_selected = |name: &&str| names.is_empty() || names.iter().any(|one| one == name);
    all.iter().copied().filter(is_selected).collect()
}

pub(crate) fn is_candidate(name: &str) -> bool {
    ALL.contains(&name) || COMPARED_WITH_DIRECT.contains(&name)
}

/// Port of the proxy whose packets `forward` translates.
const NAT_PORT: u16 = 8443;

/// What is between client and back end. Dropping it stops it.
pub(crate) enum Candidate {
    /// A direct link between client and back end.
    Direct,
    /// A program that redirects packets without a change.
    Redirect {
        _until_dropped: Redirect,
    },
    /// The kernel forwards packets and translates both addresses (nftables).
    Forward {
        _until_dropped: NatRules,
    },
    Agent {
        agent: Agent,
        /// Fields are dropped in order, so the agent is stopped before.
        _until_dropped: Option<PacketProgramsGuard>,
    },
    Peer(Child),
}

impl Candidate {
    /// Starts a candidate in front of this port of the back end, and waits until it forwards a connection.
    pub(crate) fn start(lab: &Lab, name: &str, port: u16, hello: &[u8]) -> Self {
        assert_no_programs(lab);
        let candidate = Self::create(lab, name, port);
        let target = Target { address: candidate.address(port), hello };
        wait_until(name, || lab.in_client(|| complete_connection(target)).ok());
        candidate
    }

    fn create(lab: &Lab, name: &str, port: u16) -> Self {
        let haproxy = |more| Self::Peer(spawn(lab, haproxy(lab, port, more)));
        match name {
            "direct" => Self::Direct,
            "redirect" => Self::Redirect { _until_dropped: Redirect::start(lab) },
            "forward" => {
                Self::Forward { _until_dropped: NatRules::start(lab, NAT_PORT, backend(port)) }
            }
            "haproxy" => haproxy(""),
            "haproxy-splice" => haproxy(" option splice-auto\n"),
            "nginx" => Self::Peer(spawn(lab, nginx(lab, port))),
            "traefik" => Self::Peer(spawn(lab, traefik(lab, port))),
            engine => {
                let route = format!("a.test={}", backend(port));
                let config = lab.dir().join("bench.toml");
                std::fs::write(&config, format!("[packet]\nports = \"{PACKET_ENGINE_PORTS}\"\n"))
                    .unwrap();
                let more_args =
                    ["--config", config.to_str().unwrap(), "--max-connections-per-source", "20000"];
                let flags = [&["--engine", engine, "--route", &route][..], &more_args].concat();
                let agent = Agent::start_without_telemetry(lab, &flags);
                let leftover = (engine == "packet").then(|| PacketProgramsGuard::new(lab));
                Self::Agent { agent, _until_dropped: leftover }
            }
        }
    }

    /// Address that clients connect to.
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        match self {
            Self::Direct => (IpAddr::V4(DIRECT_BACKEND), port).into(),
            Self::Redirect { .. } => (IpAddr::V4(PROXY), port).into(),
            Self::Forward { .. } => (IpAddr::V4(PROXY), NAT_PORT).into(),
            Self::Agent { .. } | Self::Peer(_) => agent::address(),
        }
    }

    /// Id of its process. The children of that process belong to the candidate.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Direct | Self::Redirect { .. } | Self::Forward { .. } => None,
            Self::Agent { agent, .. } => Some(agent.pid()),
            Self::Peer(child) => Some(child.id()),
        }
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Self::Peer(child) = self {
            // A master process passes this signal on to its workers.
            let _gone_already = kill_process(Pid::from_child(child), Signal::TERM);
            let _reaped = child.wait();
        }
    }
}

fn spawn(lab: &Lab, mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).current_dir(lab.dir());
    lab.in_proxy(|| command.spawn()).unwrap()
}

/// HAProxy with routing by SNI as in its manual.
fn haproxy(lab: &Lab, port: u16, more: &str) -> Command {
    let config = format!(
        "global\n maxconn 9000\n maxpipes 200\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n \
         timeout server 1m\n{more}\
         frontend f\n bind {PROXY}:{}\n tcp-request inspect-delay 5s\n \
         tcp-request content accept if {{ req.ssl_hello_type 1 }}\n \
         use_backend b if {{ req.ssl_sni -i a.test }}\n\
         backend b\n server s {}\n",
        agent::PORT,
        backend(port)
    );
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(write_file(lab, "haproxy.cfg", &config));
    command
}

fn nginx(lab: &Lab, port: u16) -> Command {
    let folder = lab.dir().display();
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         daemon off; user root; worker_processes auto; worker_rlimit_nofile 20000;\n\
         pid {folder}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 20000; }}\n\
         stream {{\n map $ssl_preread_server_name $to {{ a.test {}; }}\n \
         server {{ listen {PROXY}:{}; ssl_preread on; proxy_pass $to; tcp_nodelay on; }}\n}}\n",
        backend(port),
        agent::PORT,
    );
    let mut command = Command::new("nginx");
    command.arg("-c").arg(write_file(lab, "nginx.conf", &config)).arg("-p").arg(lab.dir());
    command
}

fn traefik(lab: &Lab, port: u16) -> Command {
    let config = format!(
        "tcp:\n  routers:\n    a:\n      rule: 'HostSNI(`a.test`)'\n      service: b\n      tls:\n        \
         passthrough: true\n  services:\n    b:\n      loadBalancer:\n        servers:\n        - \
         address: '{}'\n",
        backend(port)
    );
    let mut command = Command::new(packaged_program("traefik"));
    command
        .arg(format!("--providers.file.filename={}", write_file(lab, "t.yml", &config).display()));
    command.arg(format!("--entrypoints.web.address={PROXY}:{}", agent::PORT));
    command.args(["--entrypoints.web.transport.respondingtimeouts.readtimeout=0"]);
    command.args(["--global.checknewversion=false", "--global.sendanonymoususage=false"]);
    command
}

pub(crate) fn haproxy_version() -> String {
    let done = Command::new("haproxy").arg("-v").output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.split_whitespace().nth(2).unwrap_or_default().to_owned()
}
