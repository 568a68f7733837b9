//! What requests on port 80 reach: `http_backends` by validations only, https by redirects for routed names.

//@ engines: named

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use snisplit_tests::agent::Agent;
use snisplit_tests::lab::{Lab, PROXY, backend};
use snisplit_tests::stream::{connect, listen, read_all, write};

const TOKEN: &str = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0";
const RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: hidden\r\n\
                        Set-Cookie: a=b\r\nContent-Length: 8\r\n\r\nkey-auth";

/// An agent with a route for `a.test`, one for `*.wild.test` and a catch-all.
fn start_agent(lab: &Lab) -> Agent {
    let owner = "a.test=10.91.2.2:8001;http_backends=10.91.2.2:8081";
    let rest = "*=10.91.2.2:8004;http_backends=10.91.2.2:8081";
    let routes = ["--route", owner, "--route", "*.wild.test=10.91.2.2:8001", "--route", rest];
    Agent::start(lab, &[&["--http", "0.0.0.0:80"][..], &routes].concat())
}

/// Answers each connection with these bytes. Returns the requests.
fn serve_responses(listener: TcpListener, response: &'static str) -> Receiver<String> {
    let (sender, requests) = channel();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            if sender.send(read_head(&mut stream)).is_err() {
                return;
            }
            write(&stream, response.as_bytes());
        }
    });
    requests
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Sends a request as it is. Returns the response.
fn exchange(lab: &Lab, request: &str) -> String {
    let stream = connect(lab, SocketAddr::from((PROXY, 80)));
    write(&stream, request.as_bytes());
    String::from_utf8(read_all(&stream)).unwrap()
}

/// A request with the target, and the lines of a head after `Connection: close`.
fn request(method: &str, target: &str, lines: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n{lines}\r\n")
}

#[track_caller]
fn assert_status(response: &str, status: u16) {
    assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
}

#[test]
fn the_owner_gets_a_fresh_request_and_the_ca_a_plain_response() {
    let lab = Lab::new();
    let requests = serve_responses(listen(&lab, backend(8081)), RESPONSE);
    let _agent = start_agent(&lab);
    let target = format!("/.well-known/acme-challenge/{TOKEN}");
    let lines = "Host: a.test:80\r\nCookie: session=1\r\nX-Forwarded-For: 127.0.0.1\r\n\
                 Authorization: Basic YTpi\r\nUser-Agent: ca\r\nContent-Length: 3\r\n";
    for method in ["GET", "HEAD"] {
        let response = exchange(&lab, &format!("{}abc", request(method, &target, lines)));
        assert_status(&response, 200);
        assert!(!response.to_lowercase().contains("cookie"), "{response}");
        assert!(!response.contains("hidden"), "{response}");
        assert_eq!(response.ends_with("\r\n\r\nkey-auth"), method == "GET", "{response}");
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            requests.recv().unwrap(),
            format!(
                "{method} {target} HTTP/1.1\r\nhost: a.test\r\nuser-agent: snisplit/{version}\r\n\
                 connection: close\r\n\r\n"
            )
        );
    }
}

#[test]
fn nothing_else_reaches_http_backends() {
    let lab = Lab::new();
    let requests = serve_responses(listen(&lab, backend(8081)), RESPONSE);
    let _agent = start_agent(&lab);
    let folder = "/.well-known/acme-challenge";
    let valid = format!("{folder}/{TOKEN}");
    let host = "Host: a.test\r\n";
    for (method, target, lines, status) in [
        ("GET", &*format!("{folder}/../../private"), host, 404),
        ("GET", &*format!("{folder}/%2e%2e/%2e%2e/private"), host, 404),
        ("GET", &*format!("{folder}/a/../../../private"), host, 404),
        ("GET", &*format!("{valid}?x=/../../private"), host, 404),
        ("GET", &*format!("{folder}/"), host, 404),
        ("GET", folder, host, 404),
        ("POST", &*valid, "Host: a.test\r\nContent-Length: 0\r\n", 405),
        ("DELETE", &*valid, host, 405),
        ("GET", &*valid, "Host: a.test\r\nHost: a.test\r\n", 400),
        ("GET", &*valid, "", 400),
        ("GET", &*valid, "Host: 10.91.1.1\r\n", 400),
        ("GET", &*format!("http://a.test{valid}"), host, 400),
        ("GET", &*valid, "Host: victim.test\r\n", 404),
    ] {
        assert_status(&exchange(&lab, &request(method, target, lines)), status);
    }
    // The first request that the back end sees is the only valid one.
    assert_status(&exchange(&lab, &request("GET", &valid, host)), 200);
    assert!(requests.recv().unwrap().starts_with(&format!("GET {valid} ")));
    assert!(requests.try_recv().is_err());
}

#[test]
fn only_names_that_a_route_names_are_redirected() {
    let lab = Lab::new();
    let _agent = start_agent(&lab);
    let target = "/.well-known/pki-validation/fileauth.txt";
    for name in ["a.test", "x.wild.test"] {
        let response = exchange(&lab, &request("GET", target, &format!("Host: {name}\r\n")));
        assert_status(&response, 308);
        let location = format!("location: https://{name}{target}\r\n");
        assert!(response.contains(&location), "{response}");
    }
    let response = exchange(&lab, &request("GET", target, "Host: victim.test\r\n"));
    assert_status(&response, 404);
    assert!(!response.contains("location"), "{response}");
}

#[test]
fn a_response_that_is_too_long_is_not_passed_on() {
    let lab = Lab::new();
    let response = Box::leak(
        format!("HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n{}", "a".repeat(20_000))
            .into_boxed_str(),
    );
    let _requests = serve_responses(listen(&lab, backend(8081)), response);
    let _agent = start_agent(&lab);
    let target = format!("/.well-known/acme-challenge/{TOKEN}");
    let response = exchange(&lab, &request("GET", &target, "Host: a.test\r\n"));
    assert_status(&response, 502);
    assert!(response.ends_with("no HTTP back end of the owner answers\n"), "{response}");
}

#[test]
fn a_loop_is_detected() {
    let lab = Lab::new();
    let route = "loop.test=10.91.2.2:8001;http_backends=10.91.1.1:80";
    let _agent = Agent::start(&lab, &["--http", "0.0.0.0:80", "--route", route]);
    let target = format!("/.well-known/acme-challenge/{TOKEN}");
    let response = exchange(&lab, &request("GET", &target, "Host: loop.test\r\n"));
    assert_status(&response, 508);
}
