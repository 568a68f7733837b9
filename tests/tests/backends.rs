//! Several back ends: balancing, health checks, ejection, and the first packet of a connection.

use std::collections::BTreeMap;
use std::net::TcpStream;

use rustix::process::{Pid, Signal, kill_process};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::capture::{Capture, CapturePoint};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::ENGINES;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::peer::{openssl, s_client};
use snisplit_tests::stream::{
    accept, connect, listen, read_all, read_exact, read_to_end_or_error, shutdown_write,
    stop_listening, write,
};
use snisplit_tests::testbed::Peers;
use snisplit_tests::wait::wait_until;

/// Opens flows, and counts them by back end. The flows stay open as long as the returned sockets.
fn count_by_backend(
    route: &str,
    ports: &[u16],
    flows: usize,
) -> (BTreeMap<String, usize>, Vec<TcpStream>) {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, &["--route", route]);
    let listeners: Vec<_> = ports.iter().map(|&port| listen(&lab, backend(port))).collect();
    let hello = ClientHello::new().sni(b"a.test").encode();
    let mut open = Vec::new();
    let mut counts = BTreeMap::new();
    for _ in 0..flows {
        let client = connect(&lab, agent::address());
        write(&client, &hello);
        let (port, stream) = wait_until("a back end", || {
            ports.iter().zip(&listeners).find_map(|(port, listener)| {
                listener.set_nonblocking(true).unwrap();
                Some((*port, listener.accept().ok()?.0))
            })
        });
        stream.set_nonblocking(false).unwrap();
        read_exact(&stream, hello.len());
        *counts.entry(port.to_string()).or_default() += 1;
        open.extend([client, stream]);
    }
    (counts, open)
}

fn expected_counts(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs.iter().map(|(port, count)| ((*port).to_owned(), *count)).collect()
}

#[test]
fn round_robin_follows_weights() {
    let route = "a.test=10.91.2.2:8001,10.91.2.2:8002 weight=3,10.91.2.2:8003 weight=0";
    let (counts, _open) = count_by_backend(route, &[8001, 8002, 8003], 40);
    assert_eq!(counts, expected_counts(&[("8001", 10), ("8002", 30)]));
}

#[test]
fn least_connections_follows_weights() {
    let route = "a.test=10.91.2.2:8001,10.91.2.2:8002 weight=2;balance=least_connections";
    let (counts, _open) = count_by_backend(route, &[8001, 8002], 30);
    assert_eq!(counts, expected_counts(&[("8001", 10), ("8002", 20)]));
}

#[test]
fn a_source_address_stays_with_its_backend() {
    let route = "a.test=10.91.2.2:8001,10.91.2.2:8002,10.91.2.2:8003;balance=source_hash";
    let (counts, _open) = count_by_backend(route, &[8001, 8002, 8003], 12);
    assert_eq!(counts.values().collect::<Vec<_>>(), [&12]);
}

/// No request fails when a back end dies: another one answers, and the dead one is not tried after a failed check.
#[test]
fn health_checks_remove_and_restore_a_failed_backend() {
    let lab = Lab::new();
    let (one, two) = (("8001", backend(8001)), ("8002", backend(8002)));
    let mut first = Some(openssl(&lab, one.1, "a.test", &["-rev"]));
    let _second = openssl(&lab, two.1, "a.test", &["-rev"]);
    let route =
        "a.test=10.91.2.2:8001,10.91.2.2:8002;health_check.type=tls;health_check.interval=100ms";
    let agent = Agent::start(&lab, &["--route", route]).allow_warnings();
    let request = |times: usize| {
        (0..times)
            .map(|_| {
                let output = s_client(&lab, "a.test", "hello\nCLOSE\n", &["-quiet"]);
                assert!(output.contains("olleh"), "{output}");
                agent.next_record()["backend"].as_str().unwrap().to_owned()
            })
            .collect::<Vec<_>>()
    };
    let up = |port: &str| {
        agent.metric(&lab, &format!("snisplit_backend_up{{backend=\"10.91.2.2:{port}\"}}"))
    };
    assert!(request(6).iter().any(|backend| backend.ends_with(one.0)));
    drop(first.take());
    request(6);
    wait_until("health checks to notice", || (up(one.0) == 0.0).then_some(()));
    assert!(request(4).iter().all(|backend| backend.ends_with(two.0)));
    first = Some(openssl(&lab, one.1, "a.test", &["-rev"]));
    wait_until("health checks to notice", || (up(one.0) == 1.0).then_some(()));
    assert!(request(6).iter().any(|backend| backend.ends_with(one.0)));

    // The kernel accepts connections for a stopped process, so only the handshake of a check fails.
    let pid = Pid::from_raw(first.as_ref().unwrap().pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    wait_until("health checks to notice", || (up(one.0) == 0.0).then_some(()));
    assert!(request(4).iter().all(|backend| backend.ends_with(two.0)));
    kill_process(pid, Signal::CONT).unwrap();
    wait_until("health checks to notice", || (up(one.0) == 1.0).then_some(()));
    assert!(agent.log().contains("back end is down: health checks fail"));
}

/// Without health checks, a back end is ejected after three failed connects in a row, and tried last.
#[test]
fn the_ejection_of_a_refusing_backend_survives_a_reload() {
    let lab = Lab::new();
    let listener = listen(&lab, backend(8002));
    let file = lab.dir().join("snisplit.toml");
    std::fs::write(&file, config_text("")).unwrap();
    let agent = Agent::start_with_config(&lab, &file, &[]).allow_warnings();
    let hello = ClientHello::new().sni(b"a.test").encode();
    let request = || {
        let client = connect(&lab, agent::address());
        write(&client, &hello);
        shutdown_write(&client);
        assert_eq!(read_all(&accept(&listener)), hello);
        agent.next_record();
    };
    let failures = "snisplit_backend_connect_failures_total{backend=\"10.91.2.2:8001\"}";
    let up = "snisplit_backend_up{backend=\"10.91.2.2:8001\"}";
    wait_until("the ejection", || {
        request();
        (agent.metric(&lab, failures) == 3.0).then_some(())
    });
    assert_eq!(agent.metric(&lab, up), 0.0);
    std::fs::write(&file, config_text(", \"b.test\"")).unwrap();
    agent.signal(Signal::HUP);
    wait_until("the reload", || (agent.log_count("configuration reloaded") == 1).then_some(()));
    (0..8).for_each(|_| request());
    assert_eq!(
        agent.metric(&lab, failures),
        3.0,
        "an ejected back end is not tried, also after a reload"
    );
    assert!(agent.log().contains("back end ejected: connections fail"));
    // If no other back end is left, an ejected one is tried.
    stop_listening(listener);
    let client = connect(&lab, agent::address());
    write(&client, &hello);
    let received = read_to_end_or_error(&client);
    let record = agent.next_record();
    assert_eq!(received, (vec![21, 3, 3, 0, 2, 2, 80], Ok(())), "{record}");
    assert_eq!(agent.metric(&lab, failures), 4.0);
}

/// Payload length of the first packet after the SYN, for each connection to this port; `None` if that packet is a FIN or a
/// reset.
fn first_payload_lengths(all: &[(etherparse::TcpHeader, usize)], port: u16) -> Vec<Option<usize>> {
    let of = all.iter().filter(|(tcp, _)| tcp.destination_port == port && !tcp.syn);
    let first =
        |(tcp, len): &(etherparse::TcpHeader, usize)| (!tcp.fin && !tcp.rst).then_some(*len);
    // A map keeps the last value of a key, so this goes backwards.
    let firsts = of.rev().map(|packet| (packet.0.source_port, first(packet)));
    firsts.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// The packet with the ClientHello, or with the PROXY header in front of it, acknowledges the SYN-ACK, so that no packet
/// without data is sent before. A health check sends no data. One connection of four suffices: Linux sends the
/// acknowledgement alone after 200 ms.
#[test]
fn the_first_payload_acknowledges_the_syn_ack() {
    let hello = |name| ClientHello::new().sni(name).encode();
    for engine in ENGINES {
        let lab = Lab::new();
        let [plain, proxied, checks] = [8001, 8002, 8003].map(|port| listen(&lab, backend(port)));
        let capture = Capture::start(&lab, CapturePoint::Backends, "inout");
        let routes = [
            "a.test=10.91.2.2:8001",
            "b.test=10.91.2.2:8002;send_proxy=v2",
            "c.test=10.91.2.2:8003;health_check.type=tcp;health_check.interval=100ms",
        ];
        let routes = routes.map(|route| ["--route", route]).concat();
        let _agent = Agent::start(&lab, &[&["--engine", engine][..], &routes].concat());
        let _checked = accept(&checks);
        let _flows = [(); 4].map(|()| Peers::connect_offloaded(&lab, agent::address(), &plain));
        let headers = [(); 4].map(|()| {
            let client = connect(&lab, agent::address());
            write(&client, &hello(b"b.test"));
            let behind = accept(&proxied);
            let rest = read_exact(&behind, PROXY_V2_PREFIX_LEN)[PROXY_V2_PREFIX_LEN - 1];
            read_exact(&behind, usize::from(rest) + hello(b"b.test").len());
            PROXY_V2_PREFIX_LEN + usize::from(rest)
        });
        let all = capture.segments(&lab);
        for (port, expected) in [(8001, hello(b"a.test").len()), (8002, headers[0]), (8003, 0)] {
            let found = first_payload_lengths(&all, port);
            assert!(found.contains(&Some(expected)), "{engine}, {port}: {found:?}, not {expected}");
        }
    }
}

/// Bytes of a PROXY header v2 in front of the addresses. The last of them is the length of the rest.
const PROXY_V2_PREFIX_LEN: usize = 16;

/// A configuration with one route, `more_names` behind its first name.
fn config_text(more_names: &str) -> String {
    format!(
        "[[listener]]\naddress = \"0.0.0.0:443\"\n[[route]]\nsni = [\"a.test\"{more_names}]\n\
         backends = [\"10.91.2.2:8001\", \"10.91.2.2:8002\"]\n"
    )
}
