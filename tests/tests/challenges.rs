//! HTTP-01 and DNS-01, for orders of the agent and for those of back ends.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use snisplit_tests::agent::Agent;
use snisplit_tests::dns::{self, DnsServer, TSIG};
use snisplit_tests::lab::Lab;
use snisplit_tests::pebble::{self, Pebble, PebbleConfig};
use snisplit_tests::peer::{ServerProcess, nginx_plain, write_file};
use snisplit_tests::tenant::lego_with_challenge;
use snisplit_tests::wait::wait_until;

const HTTP: [&str; 2] = ["--http", "0.0.0.0:80"];
const TERMINATE: [&str; 2] = ["--terminate", "front.test=10.91.2.2:8080;challenge=http-01"];

fn start_with_http01(flags: &[&str]) -> (Lab, Pebble, ServerProcess, Agent) {
    let lab = Lab::new();
    lab.route_via_proxy();
    let pebble = Pebble::start(&lab);
    let backend = nginx_plain(&lab, 8080, "plain nginx here");
    let acme = pebble::acme_flags(&lab);
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    let agent = Agent::start(&lab, &[&acme[..], &HTTP, &TERMINATE, flags].concat());
    (lab, pebble, backend, agent)
}

/// Orders by `lego --http` on this port of the back ends.
fn lego_http01(lab: &Lab, pebble: &Pebble, port: u16, name: &str) -> Result<(), String> {
    lego_with_challenge(lab, pebble, "http", port, &[name])
}

#[test]
fn http_01_is_answered_by_the_agent_or_by_the_owner_of_the_name() {
    let owner = "a.test=10.91.2.2:8001;http_backends=10.91.2.2:8081";
    let rest = "*=10.91.2.2:8004;http_backends=10.91.2.2:8084";
    let (lab, pebble, _backend, agent) = start_with_http01(&["--route", owner, "--route", rest]);
    pebble.wait_for_certificate(&lab, "front.test");
    lego_http01(&lab, &pebble, 8081, "a.test").unwrap();
    // The tenant of the catch-all gets no certificate for a name of others.
    for (name, reason) in [
        ("victim.test", "catch_all"),
        ("a.test", "name_owner"),
        ("front.test", "no_challenge_pending"),
    ] {
        let output = lego_http01(&lab, &pebble, 8084, name).expect_err(name);
        assert!(output.contains("acme:error"), "{output}");
        let log = agent.log();
        let mut decisions = log.lines().filter(|line| line.contains(&format!("sni=\"{name}\"")));
        let last = decisions.next_back().unwrap();
        assert!(last.contains(&format!("reason=\"{reason}\" challenge=\"http-01\"")), "{last}");
    }
}

#[test]
fn other_requests_on_port_80_are_redirected_to_https() {
    let (lab, _pebble, _backend, _agent) = start_with_http01(&["--route", "a.test=10.91.2.2:8001"]);
    let ask = |url: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-m", "10", "-w", "%{http_code} %{redirect_url}", "--connect-to"]);
        let done =
            lab.in_client(|| curl.arg("::10.91.1.1:80").args(more).arg(url).output()).unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    assert_eq!(ask("http://a.test/x?y=z", &[]), "308 https://a.test/x?y=z");
    assert_eq!(ask("http://front.test:80/", &["-X", "POST"]), "308 https://front.test/");
    assert_eq!(ask("http://any.test:80/", &[]), "no route names this host\n404 ");
    let challenge = "http://a.test/.well-known/acme-challenge/";
    assert_eq!(
        ask(&format!("{challenge}token"), &[]),
        "no HTTP back end of the owner answers\n502 ",
        "its route names none"
    );
    let unrouted = format!("{}token", challenge.replace("a.test", "b.test"));
    assert_eq!(ask(&unrouted, &[]), "no_route\n404 ");
    assert_eq!(ask("http://10.91.1.1/", &[]), "one Host with a name is needed\n400 ");
}

/// An agent with a certificate for a whole zone, whose records this provider writes.
fn start_wildcard_agent(lab: &Lab, pebble: &Pebble, provider: &str) -> Agent {
    let config = format!(
        "nameservers = [\"{dns}\"]\n[[listener]]\naddress = \"0.0.0.0:443\"\n\
         [[terminate]]\nsni = [\"*.wild.test\", \"wild.test\"]\nbackends = [\"10.91.2.2:8080\"]\n\
         challenge = \"dns-01\"\n\
         [acme]\ndirectory = \"{directory}\"\nca_file = \"{ca}\"\nstate_dir = \"{folder}/state\"\n\
         [acme.dns]\n{provider}\n",
        dns = dns::address(),
        directory = pebble.directory(),
        ca = pebble.ca_file().display(),
        folder = lab.dir().display(),
    );
    Agent::start_with_config(lab, &write_file(lab, "snisplit.toml", &config), &[])
}

fn start_dns_and_ca() -> (Lab, DnsServer, Pebble, ServerProcess) {
    let lab = Lab::new();
    lab.route_via_proxy();
    let dns = DnsServer::start(&lab, "wild.test");
    let settings = PebbleConfig { name_server: Some(dns::address()), ..PebbleConfig::default() };
    let pebble = Pebble::start_with(&lab, settings);
    let backend = nginx_plain(&lab, 8080, "plain nginx here");
    (lab, dns, pebble, backend)
}

#[test]
fn a_wildcard_is_issued_by_dynamic_updates_signed_with_tsig() {
    let (lab, dns, pebble, _backend) = start_dns_and_ca();
    let server = format!("provider = \"rfc2136\"\nserver = \"{}\"\n", dns::address());
    let key = format!("tsig_name = \"{}\"\ntsig_secret = \"{}\"", TSIG.0, TSIG.1);
    let agent = start_wildcard_agent(&lab, &pebble, &(server + &key));
    for name in ["any.wild.test", "wild.test"] {
        let certificate = pebble.wait_for_certificate(&lab, name);
        let names = certificate.x509_text(&lab, &["-ext", "subjectAltName"]);
        assert!(names.contains("DNS:*.wild.test, DNS:wild.test"), "{names}");
    }
    assert!(
        !dns.read_zone().contains("_acme-challenge"),
        "the record is not removed: {}",
        dns.read_zone()
    );
    assert_eq!(agent.log_count("ACME validation"), 0, "the CA connects to nobody for DNS-01");
}

#[test]
fn a_wrong_tsig_key_is_rejected_and_logged() {
    let (lab, _dns, pebble, _backend) = start_dns_and_ca();
    let server = format!("provider = \"rfc2136\"\nserver = \"{}\"\n", dns::address());
    let key = format!("tsig_name = \"{}\"\ntsig_secret = \"d3Jvbmcgc2VjcmV0\"", TSIG.0);
    let agent = start_wildcard_agent(&lab, &pebble, &(server + &key)).allow_warnings();
    wait_until("a failed order", || {
        agent.log().contains("WARN certificate order failed").then_some(())
    });
    let log = agent.log();
    assert!(
        log.contains("dns-01: cannot add the TXT record of _acme-challenge.wild.test"),
        "{log}"
    );
}

/// The program has the calling convention of lego's `exec` provider. The name of the record has a CNAME to another name.
#[test]
fn the_dns_program_updates_the_target_of_a_cname() {
    let (lab, dns, pebble, _backend) = start_dns_and_ca();
    dns.set_records("_acme-challenge", 60, "CNAME", &["validation.wild.test."]);
    let script = format!(
        "#!/bin/sh\nset -e\nname=${{2%.wild.test.}}\ncase \"$1\" in present) verb=zone-set ttl=60;; \
         *) verb=zone-unset ttl=;; esac\nk() {{ knotc -b -s {socket} \"$@\"; }}\n\
         k zone-begin wild.test\nk $verb wild.test \"$name\" $ttl TXT \"\\\"$3\\\"\"\n\
         k zone-commit wild.test\necho \"$1 $2\" >> {folder}/calls\n",
        socket = dns.control_socket(),
        folder = lab.dir().display()
    );
    let program = write_file(&lab, "update-dns", &script);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let provider = format!("provider = \"exec\"\nprogram = \"{}\"", program.display());
    let _agent = start_wildcard_agent(&lab, &pebble, &provider);
    pebble.wait_for_certificate(&lab, "x.wild.test");
    let calls = std::fs::read_to_string(lab.dir().join("calls")).unwrap();
    let all = |verb: &str| calls.matches(&format!("{verb} validation.wild.test.")).count();
    assert_eq!((all("present"), all("cleanup")), (2, 2), "{calls}");
}
