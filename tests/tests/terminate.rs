//! TLS that ends here, with certificates from files: what clients and plaintext back ends see.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, NamedGroup, RootCertStore, StreamOwned};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::desk::is_where_it_was_accepted;
use snisplit_tests::lab::{CLIENT, Lab, backend};
use snisplit_tests::peer::{Identity, curl, haproxy, identity, nginx_plain, s_client};
use snisplit_tests::stream::{accept, connect, ending, finish, listen, read_all, write};
use snisplit_tests::wait::{pass, until};

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A lab with an agent that terminates `front.test`, whose certificate the client trusts.
struct Scene {
    agent: Agent,
    id: Identity,
    lab: Lab,
}

impl Scene {
    fn new(options: &str, flags: &[&str]) -> Self {
        let lab = Lab::new();
        let id = identity(&lab, "front.test");
        let (cert, key) = (id.cert.display(), id.key.display());
        let front = format!("front.test=10.91.2.2:8080;cert={cert};key={key}{options}");
        let agent = Agent::start(&lab, &[&["--terminate", &front], flags].concat());
        Self { agent, id, lab }
    }

    fn config(&self, alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.id.cert).unwrap()).unwrap();
        let mut config =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
        config
    }

    /// A client that has shaken hands.
    fn connect(&self, config: ClientConfig) -> Tls {
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
    let scene = Scene::new(";alpn=http/1.1", &[]);
    let _nginx = nginx_plain(&scene.lab, 8080, "plain nginx here");
    for version in ["1.2", "1.3"] {
        let tls = format!("--tlsv{version}");
        let ca = scene.id.cert.to_str().unwrap();
        let words = [&tls[..], "--tls-max", version, "--cacert", ca, "--no-insecure", "-v"];
        let done = curl(&scene.lab, "https://front.test/", &words);
        assert_eq!(done.stdout, b"plain nginx here", "{done:?}");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(said.contains(&format!("TLSv{version}")), "{said}");
        assert!(said.contains("ALPN: server accepted http/1.1"), "{said}");
        let record = scene.agent.record();
        assert_eq!(
            (&record["engine"], &record["outcome"]),
            (&"terminate".into(), &"closed".into())
        );
        assert_eq!(
            (&record["route"], &record["reason"]),
            (&"front.test".into(), &"own_name".into())
        );
    }
    let said = s_client(&scene.lab, "other.test", "", &[]);
    assert!(said.contains("alert number 112"), "no default certificate: {said}");
}

#[test]
fn post_quantum_key_exchange_and_resumption() {
    let scene = Scene::new(";alpn=h2,http/1.1", &[]);
    let listener = listen(&scene.lab, backend(8080));
    let config = scene.config(&["http/1.1", "h2"]);
    for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let mut tls = scene.connect(config.clone());
        tls.write_all(b"hello").unwrap();
        let mut server = accept(&listener);
        let mut heard = [0; 5];
        server.read_exact(&mut heard).unwrap();
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
    let scene = Scene::new("", &[]);
    let listener = listen(&scene.lab, backend(8080));
    let mut tls = scene.connect(scene.config(&[]));
    let bytes: Vec<u8> =
        (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let server = accept(&listener);
            let all = read_all(&server);
            write(&server, &all);
            finish(&server);
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
    let record = scene.agent.record();
    assert_eq!(record["outcome"], "closed", "{record}");
    let moved = (record["up"].as_u64().unwrap(), record["down"].as_u64().unwrap());
    assert_eq!(moved, (3_000_000, 3_000_000), "plaintext bytes");
}

/// A connection that ends without `close_notify` was cut: the back end must not take it for an end.
#[test]
fn what_is_cut_short_is_reset() {
    let scene = Scene::new("", &[]);
    let listener = listen(&scene.lab, backend(8080));
    let mut tls = scene.connect(scene.config(&[]));
    tls.write_all(b"half a request").unwrap();
    let server = accept(&listener);
    tls.sock.shutdown(Shutdown::Write).unwrap();
    let (heard, end) = ending(&server);
    assert_eq!((&heard[..], end), (&b"half a request"[..], Err(ErrorKind::ConnectionReset)));
    assert_eq!(scene.agent.record()["outcome"], "client_reset");

    let mut tls = scene.connect(scene.config(&[]));
    tls.write_all(b"request").unwrap();
    snisplit_tests::stream::reset(accept(&listener));
    let error = tls.read(&mut [0; 8]).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof),
        "{error}"
    );
    assert_eq!(scene.agent.record()["outcome"], "backend_reset");
}

#[test]
fn the_back_end_hears_a_proxy_header_in_the_clear() {
    let scene = Scene::new(";send_proxy=v2", &[]);
    let config = format!(
        "frontend f\n mode http\n bind {} accept-proxy\n http-request return status 200 \
         content-type text/plain lf-string \"%[src] %[fc_pp_authority]\"\n",
        backend(8080)
    );
    let _haproxy = haproxy(&scene.lab, false, backend(8080), &config);
    let done = curl(&scene.lab, "https://front.test/", &[]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), format!("{CLIENT} front.test"), "{done:?}");
}

#[test]
fn no_back_end_and_no_handshake() {
    let scene = Scene::new("", &["--hello-timeout", "1s", "--dial-timeout", "1s"]);
    let mut tls = scene.connect(scene.config(&[]));
    tls.write_all(b"anybody?").unwrap();
    let _gone = tls.read(&mut [0; 8]).unwrap_err();
    assert_eq!(scene.agent.record()["reason"], "no_backend");
    // A hello and then silence.
    let name = ServerName::try_from("front.test").unwrap();
    let mut silent = ClientConnection::new(Arc::new(scene.config(&[])), name).unwrap();
    let mut stream = connect(&scene.lab, agent::address());
    silent.write_tls(&mut stream).unwrap();
    let (_, end) = ending(&stream);
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    assert_eq!(scene.agent.record()["outcome"], "handshake_failed");
    // A hello that agrees with nothing.
    let said =
        s_client(&scene.lab, "front.test", "", &["-tls1_2", "-cipher", "NULL-SHA256:@SECLEVEL=0"]);
    assert!(said.contains("alert number 40"), "{said}");
    assert_eq!(scene.agent.record()["outcome"], "handshake_failed");
}

#[test]
fn files_are_read_again_when_they_change() {
    let scene = Scene::new("", &[]);
    let _nginx = nginx_plain(&scene.lab, 8080, "plain nginx here");
    let before = served(&scene.lab);
    // Written in place, the certificate before its key: the old pair stays until both are there.
    let key = fs::read(&scene.id.key).unwrap();
    let renewed = identity(&scene.lab, "front.test");
    let new_key = fs::read(&renewed.key).unwrap();
    assert_ne!(key, new_key);
    until("the new certificate", || (served(&scene.lab) != before).then_some(()));
    assert!(scene.agent.logged("certificate read again") >= 1);
}

/// The certificate that a client is shown.
fn served(lab: &Lab) -> String {
    let said = s_client(lab, "front.test", "", &[]);
    let begin = said.find("-----BEGIN CERTIFICATE-----").expect("a certificate");
    said[begin..].split("-----END").next().unwrap().to_owned()
}

#[test]
fn a_pair_that_goes_on_not_to_fit_is_told_of_once() {
    let Scene { agent, id, lab } = Scene::new("", &[]);
    let agent = agent.may_warn();
    let _nginx = nginx_plain(&lab, 8080, "plain nginx here");
    let before = served(&lab);
    fs::copy(identity(&lab, "other.test").key, &id.key).unwrap();
    let told = || agent.logged("the old certificate stays");
    until("a word of it", || (told() > 0).then_some(()));
    pass(Duration::from_secs(3));
    assert_eq!(told(), 1);
    assert_eq!(served(&lab), before);
}

/// Decrypting is work for all cores, and keeps none from accepting.
#[test]
fn what_is_decrypted_leaves_the_thread_that_accepted_it() {
    let scene = Scene::new(";alpn=http/1.1", &["--engine", "splice"]);
    let listener = listen(&scene.lab, backend(8080));
    let _tls = scene.connect(scene.config(&[]));
    let _backend = accept(&listener);
    assert_eq!(is_where_it_was_accepted(&scene.agent), Some(false));
}
