//! TLS that ends here, with certificates from files: what clients and plaintext back ends see.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, NamedGroup, RootCertStore, StreamOwned};
use snisplit_tests::acceptor_threads::is_on_acceptor_thread;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::lab::{CLIENT, Lab, backend};
use snisplit_tests::peer::{Identity, create_identity, curl, haproxy, nginx_plain, s_client};
use snisplit_tests::stream::{
    accept, close_with_reset, connect, listen, read_all, read_exact, read_to_end_or_error,
    shutdown_write, write,
};
use snisplit_tests::wait::{sleep_for, wait_until};

type ClientTls = StreamOwned<ClientConnection, TcpStream>;

/// A lab with an agent that terminates `front.test`, whose certificate the client trusts.
struct Setup {
    agent: Agent,
    identity: Identity,
    lab: Lab,
}

impl Setup {
    fn new(options: &str, flags: &[&str]) -> Self {
        let lab = Lab::new();
        let identity = create_identity(&lab, "front.test");
        let (cert, key) = (identity.cert.display(), identity.key.display());
        let front = format!("front.test=10.91.2.2:8080;cert={cert};key={key}{options}");
        let agent = Agent::start(&lab, &[&["--terminate", &front], flags].concat());
        Self { agent, identity, lab }
    }

    fn config(&self, alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.identity.cert).unwrap()).unwrap();
        let mut config =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
        config
    }

    /// A client that has shaken hands.
    fn connect(&self, config: ClientConfig) -> ClientTls {
        let stream = connect(&self.lab, agent::address());
        let name = ServerName::try_from("front.test").unwrap();
        let mut tls =
            StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock).unwrap();
        }
        tls
    }
}

#[test]
fn curl_and_nginx_with_both_versions_of_tls() {
    let setup = Setup::new(";alpn=http/1.1", &[]);
    let _nginx = nginx_plain(&setup.lab, 8080, "plain nginx here");
    for version in ["1.2", "1.3"] {
        let tls = format!("--tlsv{version}");
        let ca = setup.identity.cert.to_str().unwrap();
        let words = [&tls[..], "--tls-max", version, "--cacert", ca, "--no-insecure", "-v"];
        let done = curl(&setup.lab, "https://front.test/", &words);
        assert_eq!(done.stdout, b"plain nginx here", "{done:?}");
        let output = String::from_utf8_lossy(&done.stderr);
        assert!(output.contains(&format!("TLSv{version}")), "{output}");
        assert!(output.contains("ALPN: server accepted http/1.1"), "{output}");
        let record = setup.agent.next_record();
        assert_eq!(
            (&record["engine"], &record["outcome"]),
            (&"terminate".into(), &"closed".into())
        );
        assert_eq!(
            (&record["route"], &record["reason"]),
            (&"front.test".into(), &"managed_name".into())
        );
    }
    let output = s_client(&setup.lab, "other.test", "", &[]);
    assert!(output.contains("alert number 112"), "no default certificate: {output}");
}

#[test]
fn post_quantum_key_exchange_and_resumption_work() {
    let setup = Setup::new(";alpn=h2,http/1.1", &[]);
    let listener = listen(&setup.lab, backend(8080));
    let config = setup.config(&["http/1.1", "h2"]);
    for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let mut tls = setup.connect(config.clone());
        tls.write_all(b"hello").unwrap();
        let mut server = accept(&listener);
        let mut received = [0; 5];
        server.read_exact(&mut received).unwrap();
        server.write_all(b"hello yourself").unwrap();
        tls.read_exact(&mut [0; 14]).unwrap();
        assert_eq!(tls.conn.handshake_kind(), Some(kind));
        assert_eq!(tls.conn.alpn_protocol(), Some(&b"h2"[..]), "our order counts");
        if kind == rustls::HandshakeKind::Full {
            let group = tls.conn.negotiated_key_exchange_group().unwrap().name();
            assert_eq!(group, NamedGroup::X25519MLKEM768);
        }
    }
}

#[test]
fn half_closes_pass_both_ways_and_every_byte_arrives() {
    let setup = Setup::new("", &[]);
    let listener = listen(&setup.lab, backend(8080));
    let mut tls = setup.connect(setup.config(&[]));
    let bytes: Vec<u8> =
        (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let server = accept(&listener);
            let all = read_all(&server);
            write(&server, &all);
            shutdown_write(&server);
            all.len()
        });
        tls.write_all(&bytes).unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        let mut back = Vec::new();
        tls.read_to_end(&mut back).unwrap();
        assert!(back == bytes);
        assert_eq!(echo.join().unwrap(), bytes.len());
    });
    tls.sock.shutdown(Shutdown::Both).unwrap();
    let record = setup.agent.next_record();
    assert_eq!(record["outcome"], "closed", "{record}");
    let moved = (record["bytes_up"].as_u64().unwrap(), record["bytes_down"].as_u64().unwrap());
    assert_eq!(moved, (3_000_000, 3_000_000), "plaintext bytes");
}

/// A connection that ends without `close_notify` was cut: the back end must not take it for an end.
#[test]
fn a_connection_without_close_notify_is_reset() {
    let setup = Setup::new("", &[]);
    let listener = listen(&setup.lab, backend(8080));
    let mut tls = setup.connect(setup.config(&[]));
    tls.write_all(b"half a request").unwrap();
    let server = accept(&listener);
    tls.sock.shutdown(Shutdown::Write).unwrap();
    let (received, end) = read_to_end_or_error(&server);
    assert_eq!((&received[..], end), (&b"half a request"[..], Err(ErrorKind::ConnectionReset)));
    assert_eq!(setup.agent.next_record()["outcome"], "client_reset");

    let mut tls = setup.connect(setup.config(&[]));
    tls.write_all(b"request").unwrap();
    let server = accept(&listener);
    // A reset before that would be a back end that cannot be connected.
    assert_eq!(read_exact(&server, 7), b"request");
    close_with_reset(server);
    let error = tls.read(&mut [0; 8]).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof),
        "{error}"
    );
    assert_eq!(setup.agent.next_record()["outcome"], "backend_reset");
}

#[test]
fn the_backend_receives_a_proxy_header_before_the_plaintext() {
    let setup = Setup::new(";send_proxy=v2", &[]);
    let config = format!(
        "frontend f\n mode http\n bind {} accept-proxy\n http-request return status 200 \
         content-type text/plain lf-string \"%[src] %[fc_pp_authority]\"\n",
        backend(8080)
    );
    let _haproxy = haproxy(&setup.lab, false, backend(8080), &config);
    let done = curl(&setup.lab, "https://front.test/", &[]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), format!("{CLIENT} front.test"), "{done:?}");
}

#[test]
fn missing_backends_and_failed_handshakes_are_recorded() {
    let setup = Setup::new("", &["--client-hello-timeout", "1s", "--connect-timeout", "1s"]);
    let mut tls = setup.connect(setup.config(&[]));
    tls.write_all(b"anybody?").unwrap();
    let _gone = tls.read(&mut [0; 8]).unwrap_err();
    assert_eq!(setup.agent.next_record()["reason"], "no_backend");
    // A hello and then silence.
    let name = ServerName::try_from("front.test").unwrap();
    let mut silent = ClientConnection::new(Arc::new(setup.config(&[])), name).unwrap();
    let mut stream = connect(&setup.lab, agent::address());
    silent.write_tls(&mut stream).unwrap();
    let (_, end) = read_to_end_or_error(&stream);
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    assert_eq!(setup.agent.next_record()["outcome"], "handshake_failed");
    // A hello that agrees with nothing.
    let output =
        s_client(&setup.lab, "front.test", "", &["-tls1_2", "-cipher", "NULL-SHA256:@SECLEVEL=0"]);
    assert!(output.contains("alert number 40"), "{output}");
    assert_eq!(setup.agent.next_record()["outcome"], "handshake_failed");
}

#[test]
fn certificate_files_are_reloaded_when_they_change() {
    let setup = Setup::new("", &[]);
    let _nginx = nginx_plain(&setup.lab, 8080, "plain nginx here");
    let before = served_certificate(&setup.lab);
    // Written in place, the certificate before its key: the old pair stays until both are there.
    let key = fs::read(&setup.identity.key).unwrap();
    let renewed = create_identity(&setup.lab, "front.test");
    let new_key = fs::read(&renewed.key).unwrap();
    assert_ne!(key, new_key);
    wait_until("the new certificate", || (served_certificate(&setup.lab) != before).then_some(()));
    assert!(setup.agent.log_count("certificate read again") >= 1);
}

/// The certificate that a client is shown.
fn served_certificate(lab: &Lab) -> String {
    let output = s_client(lab, "front.test", "", &[]);
    let begin = output.find("-----BEGIN CERTIFICATE-----").expect("a certificate");
    output[begin..].split("-----END").next().unwrap().to_owned()
}

#[test]
fn a_certificate_that_does_not_match_its_key_is_logged_once() {
    let Setup { agent, identity: id, lab } = Setup::new("", &[]);
    let agent = agent.allow_warnings();
    let _nginx = nginx_plain(&lab, 8080, "plain nginx here");
    let before = served_certificate(&lab);
    fs::copy(create_identity(&lab, "other.test").key, &id.key).unwrap();
    let warnings = || agent.log_count("the old certificate stays");
    wait_until("a word of it", || (warnings() > 0).then_some(()));
    sleep_for(Duration::from_secs(3));
    assert_eq!(warnings(), 1);
    assert_eq!(served_certificate(&lab), before);
}

/// Decrypting is work for all cores, and keeps none from accepting.
#[test]
fn a_terminated_connection_leaves_the_acceptor_thread() {
    let setup = Setup::new(";alpn=http/1.1", &["--engine", "splice"]);
    let listener = listen(&setup.lab, backend(8080));
    let _tls = setup.connect(setup.config(&[]));
    let _backend = accept(&listener);
    assert_eq!(is_on_acceptor_thread(&setup.agent), Some(false));
}
