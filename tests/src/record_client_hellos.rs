//! Records the files of `tests/client_hellos`: starts each client against a listener, and writes the first bytes that it
//! sends. `tests/client_hellos/README.md` has the command.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use snisplit_tests::wait::wait_until;

const PORT: u16 = 8443;
const URL: &str = "https://a.test:8443/";
const CHROMIUM: &str = "chromium --headless --no-sandbox --disable-gpu --disable-quic \
    --no-first-run --disable-background-networking --disable-component-update --disable-sync \
    --user-data-dir=/tmp/sp-chromium --dump-dom https://a.test:8443/";
const PYTHON: &str = "import socket,ssl; c=ssl.create_default_context(); \
    c.set_alpn_protocols(['h2','http/1.1']); \
    c.wrap_socket(socket.create_connection(('127.0.0.1',8443)),server_hostname='a.test')";

fn main() {
    let folder = std::env::args().nth(1).expect("usage: record-client-hellos FOLDER");
    let folder = Path::new(&folder);
    let listener = TcpListener::bind(("127.0.0.1", PORT))
        .expect("this program needs a network namespace of its own");
    fs::create_dir_all("/tmp/sp-firefox").unwrap();
    for (client, args) in client_commands() {
        let mut command = Command::new(&args[0]);
        command.args(&args[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("HOME", "/tmp/sp-firefox").process_group(0);
        let child = ChildGuard(command.spawn().expect("the client"));
        record_client_hello(folder, client, &listener);
        drop(child);
    }
    let rustls_client = std::thread::spawn(connect_with_rustls);
    record_client_hello(folder, "rustls", &listener);
    rustls_client.join().unwrap();
}

/// Name of each client, and the command that has it connect.
fn client_commands() -> [(&'static str, Vec<String>); 8] {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let peer = "127.0.0.1:8443";
    [
        (
            "openssl",
            words(&format!("openssl s_client -connect {peer} -servername a.test -alpn h2")),
        ),
        (
            "openssl-acme",
            words(&format!("openssl s_client -connect {peer} -servername a.test -alpn acme-tls/1")),
        ),
        ("curl", words(&format!("curl -sk {URL}"))),
        ("gnutls", words("gnutls-cli --insecure -p 8443 a.test")),
        ("python", vec!["python3".into(), "-c".into(), PYTHON.into()]),
        (
            "go-lego",
            words(&format!(
                "lego --path /tmp/sp-firefox --server {URL} --email a@a.test -a --tls -d b.test run"
            )),
        ),
        ("chromium", words(CHROMIUM)),
        (
            "firefox",
            words(&format!(
                "firefox-esr --headless --profile /tmp/sp-firefox --screenshot /tmp/sp-firefox/x.png {URL}"
            )),
        ),
    ]
}

struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // A browser has several processes.
        let _gone_already = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _reaped = self.0.wait();
    }
}

/// Writes the bytes that a client sends until it waits for an answer.
fn record_client_hello(folder: &Path, client: &str, listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let (mut stream, _) = wait_until(client, || listener.accept().ok());
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut bytes = Vec::new();
    let _timeout = stream.read_to_end(&mut bytes);
    assert_eq!(bytes.first(), Some(&22), "{client} has sent no TLS record");
    println!("{client}: {} bytes", bytes.len());
    fs::write(folder.join(client).with_extension("bin"), bytes).unwrap();
    drop(stream);
    // A client may have connected more than once.
    while listener.accept().is_ok() {}
}

fn connect_with_rustls() {
    let mut config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("a.test").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", PORT)).unwrap();
    connection.write_tls(&mut stream).unwrap();
    let _until_closed = stream.read(&mut [0; 16]);
}
