//! Why there is a snisplit: a front and the back ends behind it get their certificates from one CA by
//! TLS-ALPN-01 over one port, and nobody gets another's.

use snisplit_tests::agent::Agent;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::pebble::{self, Pebble};
use snisplit_tests::peer::{Peer, nginx_plain, openssl};
use snisplit_tests::tenant::{Preface, caddy, lego, traefik};

const FRONT: [&str; 2] = ["--terminate", "front.test=10.91.2.2:8080"];

struct Scene {
    agent: Agent,
    _behind: Peer,
    pebble: Pebble,
    lab: Lab,
}

impl Scene {
    /// An agent that orders for `front.test` and is told this besides.
    fn new(flags: &[&str]) -> Self {
        let lab = Lab::new();
        lab.route_through();
        let pebble = Pebble::start(&lab);
        let acme = pebble::flags(&lab);
        let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
        let behind = nginx_plain(&lab, 8080, "the site of the front");
        let agent = Agent::start(&lab, &[&acme[..], &FRONT, flags].concat()).may_warn();
        Self { agent, _behind: behind, pebble, lab }
    }

    #[track_caller]
    fn all_have_theirs(&self) {
        for name in ["a.test", "www.a.test", "front.test"] {
            let certificate = self.pebble.comes_to_vouch(&self.lab, name);
            let names = certificate.print(&self.lab, &["-ext", "subjectAltName"]);
            assert!(names.contains(&format!("DNS:{name}")), "{names}");
        }
        assert_eq!(self.agent.logged("decision=\"refuse\""), 0, "{}", self.agent.log());
        assert_eq!(self.agent.logged("WARN"), 0, "{}", self.agent.log());
    }
}

type Start = fn(&Lab, &Pebble, u16, &[&str], Preface) -> Peer;

fn both_tiers(start: Start) {
    for (preface, send_proxy) in [(Preface::Plain, "off"), (Preface::Proxy, "v2")] {
        let route = format!("a.test,www.a.test=10.91.2.2:8001;send_proxy={send_proxy}");
        let scene = Scene::new(&["--route", &route]);
        let names = ["a.test", "www.a.test"];
        let _tenant = start(&scene.lab, &scene.pebble, 8001, &names, preface);
        scene.all_have_theirs();
    }
}

#[test]
fn traefik_behind_us_and_we_get_ours() {
    both_tiers(traefik);
}

#[test]
fn caddy_behind_us_and_we_get_ours() {
    both_tiers(caddy);
}

#[test]
fn lego_behind_us_and_we_get_ours() {
    let scene = Scene::new(&["--route", "a.test,www.a.test=10.91.2.2:8001"]);
    lego(&scene.lab, &scene.pebble, 8001, &["a.test", "www.a.test"]).unwrap();
    scene.pebble.comes_to_vouch(&scene.lab, "front.test");
    assert!(scene.agent.logged("decision=\"forward\" reason=\"owner\"") >= 2);
}

/// Traefik's old behaviour, on request only.
#[test]
fn with_bypass_never_the_back_end_fails_and_we_get_ours() {
    let flags = ["--acme-bypass", "never", "--route", "a.test=10.91.2.2:8001"];
    let scene = Scene::new(&flags);
    let said = lego(&scene.lab, &scene.pebble, 8001, &["a.test"]).unwrap_err();
    assert!(said.contains("unauthorized"), "{said}");
    assert!(scene.agent.logged("reason=\"bypass_never\"") >= 1);
    scene.pebble.comes_to_vouch(&scene.lab, "front.test");
}

/// Traefik's `allowACMEByPass = true`, and what it allows: said at the start.
#[test]
fn with_bypass_always_a_catch_all_gets_other_peoples_certificates() {
    let scene = Scene::new(&["--acme-bypass", "always", "--route", "*=10.91.2.2:8004"]);
    assert!(scene.agent.log().contains("WARN acme_bypass = \"always\""), "{}", scene.agent.log());
    lego(&scene.lab, &scene.pebble, 8004, &["victim.test"]).unwrap();
    assert!(scene.agent.logged("decision=\"forward\" reason=\"bypass_always\"") >= 1);
}

/// A tenant that holds the catch-all asks for what belongs to others: five times of five, nothing.
#[test]
fn a_tenant_with_the_catch_all_gets_nobodys_certificate() {
    let routes = [
        "--route",
        "*=10.91.2.2:8004",
        "--route",
        "a.test=10.91.2.2:8001",
        "--route",
        "*.wild.test=10.91.2.2:8001",
    ];
    let scene = Scene::new(&routes);
    let _owner = openssl(&scene.lab, backend(8001), "a.test", &["-alpn", "h2"]);
    scene.pebble.comes_to_vouch(&scene.lab, "front.test");
    for (name, decision, reason) in [
        ("victim.test", "refuse", "catch_all"),
        ("mail.a.test", "refuse", "catch_all"),
        ("a.test", "forward", "owner"),
        ("x.wild.test", "forward", "owner"),
        ("front.test", "refuse", "no_challenge_pending"),
    ] {
        let asked = lego(&scene.lab, &scene.pebble, 8004, &[name]);
        let said = asked.expect_err(name);
        assert!(said.contains("acme:error"), "{said}");
        let log = scene.agent.log();
        let told = log.lines().filter(|line| line.contains(&format!("sni=\"{name}\"")));
        let wanted = format!("decision=\"{decision}\" reason=\"{reason}\"");
        assert!(
            told.clone().next_back().is_some_and(|line| line.contains(&wanted)),
            "{name}: {log}"
        );
        if decision == "forward" {
            assert!(told.clone().all(|line| !line.contains("route=\"*\"")), "{log}");
        }
    }
}
