//! The PROXY protocol: headers that the agent receives from trusted proxies only, and headers that it sends to back ends.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::ENGINES;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::peer::{
    ServerProcess, create_identity, curl, haproxy, nginx_with_proxy_protocol, write_file,
};
use snisplit_tests::stream::{accept, connect, listen, read_all, shutdown_write, write};

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 443\r\n";
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x08\x12\x67\x01\xbb";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

/// Starts an agent that requires headers from the client's network, and a back end that listens.
fn start_requiring_header(flags: &[&str]) -> (Agent, TcpListener, Lab) {
    let lab = Lab::new();
    let required = ["--proxy-protocol-from", "10.91.1.0/24"];
    let agent = Agent::start(&lab, &[&required[..], flags].concat());
    let listener = listen(&lab, backend(8001));
    (agent, listener, lab)
}

#[test]
fn headers_of_a_trusted_proxy_are_read_in_any_chunking() {
    let (agent, listener, lab) = start_requiring_header(&["--route", "a.test=10.91.2.2:8001"]);
    let hello = ClientHello::new().sni(b"a.test").encode();
    for (header, client) in [(V1, "192.0.2.7:4711"), (V2, "192.0.2.7:4711"), (LOCAL, "10.91.1.2:")]
    {
        for size in [1, 5, 1000] {
            let stream = connect(&lab, agent::address());
            let bytes = [header, &hello].concat();
            bytes.chunks(size).for_each(|part| write(&stream, part));
            shutdown_write(&stream);
            assert_eq!(read_all(&accept(&listener)), hello, "the back end gets no header");
            let record = agent.next_record();
            assert!(record["client"].as_str().unwrap().starts_with(client), "{record}");
            assert!(record["proxy"].as_str().unwrap().starts_with("10.91.1.2:"), "{record}");
        }
    }
}

#[test]
fn a_header_is_mandatory_from_some_and_forbidden_to_others() {
    let assert_rejected = |agent: &Agent, lab: &Lab, bytes: &[u8], reason: &str| {
        let stream = connect(lab, agent::address());
        write(&stream, bytes);
        shutdown_write(&stream);
        assert_eq!(read_all(&stream), [21, 3, 3, 0, 2, 2, 10], "{reason}");
        assert_eq!(agent.next_record()["reason"], reason);
        let counted = format!("snisplit_connections_rejected_total{{reason=\"{reason}\"}}");
        assert!(agent.metric(lab, &counted) >= 1.0);
    };
    let hello = ClientHello::new().sni(b"a.test").encode();
    let route = ["--route", "a.test=10.91.2.2:8001"];
    let (agent, _listener, lab) = start_requiring_header(&route);
    assert_rejected(&agent, &lab, &hello, "proxy_header_missing");
    assert_rejected(&agent, &lab, b"PROXY TCP4 nonsense\r\n", "proxy_header_malformed");
    assert_rejected(&agent, &lab, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "proxy_header_too_long");
    drop((agent, lab));
    let lab = Lab::new();
    let agent =
        Agent::start(&lab, &[&route[..], &["--proxy-protocol-from", "10.99.0.0/16"]].concat());
    for header in [V1, V2] {
        assert_rejected(&agent, &lab, &[header, &hello].concat(), "proxy_header_not_allowed");
    }
}

#[test]
fn an_nginx_backend_learns_the_client_address() {
    for version in ["v1", "v2"] {
        let lab = Lab::new();
        let _nginx = nginx_with_proxy_protocol(&lab, 8001, "a.test");
        let route = format!("a.test=10.91.2.2:8001;send_proxy={version}");
        for engine in ENGINES {
            let agent = Agent::start(&lab, &["--engine", engine, "--route", &route]);
            let done = curl(&lab, "https://a.test/", &[]);
            assert_eq!(String::from_utf8_lossy(&done.stdout), "10.91.1.2", "{done:?}");
            agent.next_record();
        }
    }
}

/// HAProxy verifies the CRC32c of a v2 header, and answers with the server name in it.
#[test]
fn a_haproxy_backend_learns_the_server_name_too() {
    let lab = Lab::new();
    let id = create_identity(&lab, "a.test");
    let pem = [id.cert, id.key].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    let pem = write_file(&lab, "both.pem", &pem);
    let config = format!(
        "frontend f\n mode http\n bind {} accept-proxy ssl crt {}\n http-request return \
         status 200 content-type text/plain lf-string \"%[src] %[fc_pp_authority]\"\n",
        backend(8001),
        pem.display()
    );
    let _haproxy = haproxy(&lab, false, backend(8001), &config);
    let agent = Agent::start(&lab, &["--route", "a.test=10.91.2.2:8001;send_proxy=v2"]);
    let done = curl(&lab, "https://a.test/", &[]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "10.91.1.2 a.test", "{done:?}");
    agent.next_record();
}

/// curl, HAProxy or nginx, snisplit, nginx: the last server learns the address of the first client.
#[test]
fn the_client_address_passes_through_two_proxies() {
    let lab = Lab::new();
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let first_proxy = |port, send: &str| {
        format!(
            "frontend f{port}\n mode tcp\n bind 127.0.0.1:{port}\n default_backend b{port}\n\
             backend b{port}\n mode tcp\n server s {} {send}\n",
            agent::address()
        )
    };
    let _nginx = nginx_with_proxy_protocol(&lab, 8001, "a.test");
    let agent = Agent::start(
        &lab,
        &["--proxy-protocol-from", "10.91.1.2", "--route", "a.test=10.91.2.2:8001;send_proxy=v2"],
    );
    let both = first_proxy(9001, "send-proxy") + &first_proxy(9002, "send-proxy-v2");
    let _haproxy = haproxy(&lab, true, local(9001), &both);
    let stream = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so; daemon off; master_process off;\n\
         pid front.pid; error_log stderr; events {{}}\n\
         stream {{ server {{ listen 127.0.0.1:9003; proxy_pass {}; proxy_protocol on; }} }}",
        agent::address()
    );
    let file = write_file(&lab, "front.conf", &stream);
    let mut nginx = Command::new("nginx");
    let _front = ServerProcess::start_at_client(
        &lab,
        local(9003),
        nginx.arg("-c").arg(file).args(["-p", "."]),
    );
    for port in [9001, 9002, 9003] {
        let mut curl = Command::new("curl");
        curl.args(["-sSk", "-m", "20", "--interface", "127.0.0.77", "--resolve"]);
        curl.arg(format!("a.test:{port}:127.0.0.1")).arg(format!("https://a.test:{port}/"));
        let done = lab.in_client(|| curl.output()).unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout), "127.0.0.77", "{port} {done:?}");
        let record = agent.next_record_for("a.test");
        assert!(record["client"].as_str().unwrap().starts_with("127.0.0.77:"), "{record}");
    }
}
