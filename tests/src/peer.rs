//! Real peers: TLS servers behind the agent, and TLS clients in front of it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, backend};
use crate::wait::wait_until;

/// A server process, which is killed when it is dropped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    log: PathBuf,
}

impl ServerProcess {
    /// Starts a server among the back ends and waits until it accepts on `address`.
    pub fn start_backend(lab: &Lab, address: SocketAddr, command: &mut Command) -> Self {
        Self::start_in(lab, lab.namespace_names()[2], address, command)
    }

    /// Starts a server in the client's namespace and waits until it accepts on `address`.
    pub fn start_at_client(lab: &Lab, address: SocketAddr, command: &mut Command) -> Self {
        Self::start_in(lab, lab.namespace_names()[0], address, command)
    }

    fn start_in(lab: &Lab, namespace: &str, address: SocketAddr, command: &mut Command) -> Self {
        let log = lab.dir().join(format!("peer-{}.log", address.port()));
        let file = fs::File::create(&log).unwrap();
        // s_server exits at the end of its standard input.
        command.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file);
        command.env("HOME", lab.dir()).current_dir(lab.dir());
        let child = lab.in_namespace(namespace, || command.spawn());
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut peer = Self { child, log };
        wait_until(&format!("{command:?}"), || {
            assert!(peer.child.try_wait().unwrap().is_none(), "{command:?}: {}", peer.log());
            lab.in_namespace(namespace, || TcpStream::connect(address)).ok()
        });
        peer
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A key and a self-signed certificate for a name.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

/// Creates a key and a self-signed certificate for a name.
pub fn create_identity(lab: &Lab, name: &str) -> Identity {
    let cert = lab.dir().join(format!("{name}.pem"));
    let key = lab.dir().join(format!("{name}.key"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    command.args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")]);
    command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    command.args(["-addext", &format!("subjectAltName=DNS:{name}"), "-keyout"]);
    let done = command.arg(&key).arg("-out").arg(&cert).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Identity { cert, key }
}

/// Starts openssl s_server with these arguments. With `-rev`, it answers each line reversed, and exits at the line `CLOSE`.
pub fn openssl(lab: &Lab, address: SocketAddr, name: &str, args: &[&str]) -> ServerProcess {
    let Identity { cert, key } = create_identity(lab, name);
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", &address.to_string()]);
    command.arg("-cert").arg(cert).arg("-key").arg(key).args(args);
    ServerProcess::start_backend(lab, address, &mut command)
}

/// Starts nginx, which answers every request with `body`.
pub fn nginx(lab: &Lab, port: u16, name: &str, body: &str) -> ServerProcess {
    let address = backend(port).to_string();
    let listen = NginxListen { address: &address, port, options: "ssl http2" };
    nginx_with(lab, listen, name, body)
}

/// Starts nginx, which requires a PROXY header and answers with the address in it.
pub fn nginx_with_proxy_protocol(lab: &Lab, port: u16, name: &str) -> ServerProcess {
    let address = backend(port).to_string();
    let listen = NginxListen { address: &address, port, options: "ssl proxy_protocol" };
    nginx_with(lab, listen, name, "$proxy_protocol_addr")
}

/// Starts nginx without TLS, which answers every request with `body`.
pub fn nginx_plain(lab: &Lab, port: u16, body: &str) -> ServerProcess {
    let address = backend(port).to_string();
    nginx_with(lab, NginxListen { address: &address, port, options: "" }, "plain.test", body)
}

/// Starts nginx for `a.test` on a unix socket, and on a port to find out when it has started.
pub fn nginx_on_socket(lab: &Lab, socket: &str, port: u16) -> ServerProcess {
    let options = format!("ssl; listen {}", backend(port));
    let listen = NginxListen { address: socket, port, options: &options };
    nginx_with(lab, listen, "a.test", "nginx here")
}

/// Where nginx listens.
#[derive(Clone, Copy)]
struct NginxListen<'a> {
    /// Address of the `listen` directive.
    address: &'a str,
    /// Port that accepts once nginx has started. No other server of the lab may use it.
    port: u16,
    /// Options of the `listen` directive.
    options: &'a str,
}

fn nginx_with(lab: &Lab, listen: NginxListen<'_>, name: &str, body: &str) -> ServerProcess {
    let NginxListen { address, port, options } = listen;
    let Identity { cert, key } = create_identity(lab, name);
    let (cert, key) = (cert.display(), key.display());
    // nginx, as root, changes the owner of its temporary folders to nobody, so the lab's folder cannot be one.
    let folder = lab.dir().join(format!("nginx-{port}")).display().to_string();
    let config = format!(
        "daemon off; master_process off; pid {folder}.pid; error_log stderr;
         events {{}}
         http {{
           access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
           fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
           server {{
             listen {address} {options}; ssl_protocols TLSv1.2 TLSv1.3;
             ssl_certificate {cert}; ssl_certificate_key {key};
             location / {{ return 200 '{body}'; }}
           }}
         }}"
    );
    let file = write_file(lab, &format!("nginx-{port}.conf"), &config);
    ServerProcess::start_backend(
        lab,
        backend(port),
        Command::new("nginx").arg("-c").arg(file).args(["-p", "."]),
    )
}

/// Starts Caddy, which answers every request with `body`.
pub fn caddy(lab: &Lab, port: u16, name: &str, body: &str) -> ServerProcess {
    let Identity { cert, key } = create_identity(lab, name);
    let (cert, key) = (cert.display(), key.display());
    let config = format!(
        "{{\n admin off\n auto_https off\n persist_config off\n}}\n\
         https://{name}:{port} {{\n tls {cert} {key}\n respond \"{body}\"\n}}\n"
    );
    let file = write_file(lab, "Caddyfile", &config);
    let mut command = Command::new(packaged_program("caddy"));
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
    ServerProcess::start_backend(lab, backend(port), &mut command)
}

/// Starts Traefik with its ping service behind TLS, which answers `OK`.
pub fn traefik(lab: &Lab, port: u16, name: &str) -> ServerProcess {
    let Identity { cert, key } = create_identity(lab, name);
    let config = format!(
        "tls:\n  certificates:\n  - certFile: {}\n    keyFile: {}\n\
         http:\n  routers:\n    ping:\n      rule: 'Host(`{name}`)'\n      \
         service: ping@internal\n      tls: {{}}\n",
        cert.display(),
        key.display()
    );
    let file = write_file(lab, "dynamic.yml", &config);
    let mut command = Command::new(packaged_program("traefik"));
    command.arg(format!("--providers.file.filename={}", file.display()));
    command.arg(format!("--entrypoints.web.address={}", backend(port)));
    command.args(["--ping=true", "--ping.manualrouting=true", "--global.checknewversion=false"]);
    let peer = ServerProcess::start_backend(lab, backend(port), &mut command);
    // Traefik accepts connections before it has read its routes.
    wait_until("Traefik to read its route", || {
        let mut probe = Command::new("curl");
        probe.args(["-sk", "--connect-to", &format!("::{}", backend(port))]);
        let done = lab.in_backends(|| probe.arg(format!("https://{name}/")).output()).unwrap();
        (done.stdout == b"OK").then_some(())
    });
    peer
}

/// Path of a program that `cargo xtask setup` has installed into its own Python environment.
pub fn packaged_program(program: &str) -> PathBuf {
    let folder = std::env::var("SNISPLIT_PEERS");
    Path::new(&folder.expect("SNISPLIT_PEERS: run these tests by `cargo xtask test`")).join(program)
}

/// Starts HAProxy with this configuration behind common defaults. `address` is one that it listens on.
pub fn haproxy(lab: &Lab, at_client: bool, address: SocketAddr, config: &str) -> ServerProcess {
    let head = "defaults\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n";
    let file =
        write_file(lab, &format!("haproxy-{}.cfg", address.port()), &(head.to_owned() + config));
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    match at_client {
        true => ServerProcess::start_at_client(lab, address, &mut command),
        false => ServerProcess::start_backend(lab, address, &mut command),
    }
}

/// Writes a file into the lab's folder.
pub fn write_file(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let path = lab.dir().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Runs curl in the client's namespace. Every name has the agent's address, and certificates are not verified.
pub fn curl(lab: &Lab, url: &str, args: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["-sSk", "-m", "20", "--connect-to"]);
    command.arg(format!("::{}", crate::agent::address())).args(args).arg(url);
    lab.in_client(|| command.output()).unwrap()
}

/// Runs openssl s_client in the client's namespace with this input. Returns its output.
pub fn s_client(lab: &Lab, name: &str, input: &str, args: &[&str]) -> String {
    let file = lab.dir().join(format!("input-{}", input.len()));
    fs::write(&file, input).unwrap();
    let mut command = Command::new("timeout");
    command.args(["20", "openssl", "s_client", "-servername", name, "-connect"]);
    command.arg(crate::agent::address().to_string()).args(args);
    command.stdin(fs::File::open(file).unwrap());
    let done = lab.in_client(|| command.output()).unwrap();
    [done.stdout, done.stderr].map(|out| String::from_utf8_lossy(&out).into_owned()).concat()
}
