//! Two tiers of ACME clients: the agent and the back ends get their certificates from one CA by TLS-ALPN-01 over one port,
//! and nobody gets a certificate for a name of others.

use snisplit_tests::agent::Agent;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::pebble::{self, Pebble};
use snisplit_tests::peer::{ServerProcess, nginx_plain, openssl};
use snisplit_tests::tenant::{ListenerMode, caddy, lego, traefik};

const TERMINATE: [&str; 2] = ["--terminate", "front.test=10.91.2.2:8080"];

struct Setup {
    agent: Agent,
    _backend: ServerProcess,
    pebble: Pebble,
    lab: Lab,
}

impl Setup {
    /// Starts an agent that orders a certificate for `front.test`, with these flags besides.
    fn new(flags: &[&str]) -> Self {
        let lab = Lab::new();
        lab.route_via_proxy();
        let pebble = Pebble::start(&lab);
        let acme = pebble::acme_flags(&lab);
        let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
        let backend = nginx_plain(&lab, 8080, "the site of the front");
        let agent = Agent::start(&lab, &[&acme[..], &TERMINATE, flags].concat()).allow_warnings();
        Self { agent, _backend: backend, pebble, lab }
    }

    #[track_caller]
    fn assert_all_certificates(&self) {
        for name in ["a.test", "www.a.test", "front.test"] {
            let certificate = self.pebble.wait_for_certificate(&self.lab, name);
            let names = certificate.x509_text(&self.lab, &["-ext", "subjectAltName"]);
            assert!(names.contains(&format!("DNS:{name}")), "{names}");
        }
        assert_eq!(self.agent.log_count("action=\"reject\""), 0, "{}", self.agent.log());
        assert_eq!(self.agent.log_count("WARN"), 0, "{}", self.agent.log());
    }
}

type StartTenant = fn(&Lab, &Pebble, u16, &[&str], ListenerMode) -> ServerProcess;

fn check_tenant(start: StartTenant) {
    for (mode, send_proxy) in [(ListenerMode::Tls, "off"), (ListenerMode::ProxyProtocol, "v2")] {
        let route = format!("a.test,www.a.test=10.91.2.2:8001;send_proxy={send_proxy}");
        let setup = Setup::new(&["--route", &route]);
        let names = ["a.test", "www.a.test"];
        let _tenant = start(&setup.lab, &setup.pebble, 8001, &names, mode);
        setup.assert_all_certificates();
    }
}

#[test]
fn traefik_and_the_agent_both_get_certificates() {
    check_tenant(traefik);
}

#[test]
fn caddy_and_the_agent_both_get_certificates() {
    check_tenant(caddy);
}

#[test]
fn lego_and_the_agent_both_get_certificates() {
    let setup = Setup::new(&["--route", "a.test,www.a.test=10.91.2.2:8001"]);
    lego(&setup.lab, &setup.pebble, 8001, &["a.test", "www.a.test"]).unwrap();
    setup.pebble.wait_for_certificate(&setup.lab, "front.test");
    assert!(setup.agent.log_count("action=\"forward\" reason=\"name_owner\"") >= 2);
}

/// `acme_bypass = "never"` is what Traefik did before it had `allowACMEByPass`.
#[test]
fn acme_bypass_never_rejects_the_tenant_but_not_the_agent() {
    let flags = ["--acme-bypass", "never", "--route", "a.test=10.91.2.2:8001"];
    let setup = Setup::new(&flags);
    let output = lego(&setup.lab, &setup.pebble, 8001, &["a.test"]).unwrap_err();
    assert!(output.contains("unauthorized"), "{output}");
    assert!(setup.agent.log_count("reason=\"bypass_never\"") >= 1);
    setup.pebble.wait_for_certificate(&setup.lab, "front.test");
}

/// `acme_bypass = "always"` is Traefik's `allowACMEByPass = true`. The agent warns of it at its start.
#[test]
fn acme_bypass_always_gives_the_catch_all_any_certificate() {
    let setup = Setup::new(&["--acme-bypass", "always", "--route", "*=10.91.2.2:8004"]);
    assert!(setup.agent.log().contains("WARN acme_bypass = \"always\""), "{}", setup.agent.log());
    lego(&setup.lab, &setup.pebble, 8004, &["victim.test"]).unwrap();
    assert!(setup.agent.log_count("action=\"forward\" reason=\"bypass_always\"") >= 1);
}

/// The tenant of the catch-all orders certificates for five names of others.
#[test]
fn a_tenant_with_the_catch_all_gets_no_certificate_of_others() {
    let routes = [
        "--route",
        "*=10.91.2.2:8004",
        "--route",
        "a.test=10.91.2.2:8001",
        "--route",
        "*.wild.test=10.91.2.2:8001",
    ];
    let setup = Setup::new(&routes);
    let _owner = openssl(&setup.lab, backend(8001), "a.test", &["-alpn", "h2"]);
    setup.pebble.wait_for_certificate(&setup.lab, "front.test");
    for (name, action, reason) in [
        ("victim.test", "reject", "catch_all"),
        ("mail.a.test", "reject", "catch_all"),
        ("a.test", "forward", "name_owner"),
        ("x.wild.test", "forward", "name_owner"),
        ("front.test", "reject", "no_challenge_pending"),
    ] {
        let asked = lego(&setup.lab, &setup.pebble, 8004, &[name]);
        let output = asked.expect_err(name);
        assert!(output.contains("acme:error"), "{output}");
        let log = setup.agent.log();
        let decisions = log.lines().filter(|line| line.contains(&format!("sni=\"{name}\"")));
        let expected = format!("action=\"{action}\" reason=\"{reason}\"");
        assert!(
            decisions.clone().next_back().is_some_and(|line| line.contains(&expected)),
            "{name}: {log}"
        );
        if action == "forward" {
            assert!(decisions.clone().all(|line| !line.contains("route=\"*\"")), "{log}");
        }
    }
}
