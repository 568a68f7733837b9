//! The story that snisplit exists for: two tiers, one CA, one port.

use snisplit_tests::agent::Agent;
use snisplit_tests::lab::Lab;
use snisplit_tests::pebble::{self, Pebble};
use snisplit_tests::peer::nginx_plain;
use snisplit_tests::tenant::{ListenerMode, caddy, lego, traefik};

const FLAGS: [&str; 10] = [
    "--terminate",
    "front.test=10.91.2.2:8080",
    "--route",
    "a.test,www.a.test=10.91.2.2:8001",
    "--route",
    "c.test=10.91.2.2:8002;send_proxy=v2",
    "--route",
    "l.test=10.91.2.2:8003",
    "--route",
    "*=10.91.2.2:8004",
];

pub(crate) fn run() {
    println!(
        "== Two tiers, one CA (Pebble), TLS-ALPN-01 over the one port 443, no ACME switch set"
    );
    println!("   snisplit run {} --acme-directory …", FLAGS.join(" "));
    let lab = Lab::new();
    lab.route_via_proxy();
    let pebble = Pebble::start(&lab);
    let _backend = nginx_plain(&lab, 8080, "the site of the front");
    let acme = pebble::acme_flags(&lab);
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    let agent = Agent::start(&lab, &[&acme[..], &FLAGS].concat());
    let _tenants = [
        traefik(&lab, &pebble, 8001, &["a.test", "www.a.test"], ListenerMode::Tls),
        caddy(&lab, &pebble, 8002, &["c.test"], ListenerMode::ProxyProtocol),
    ];
    let by_lego = lego(&lab, &pebble, 8003, &["l.test"]).is_ok();
    println!("   {:<12} {:<34} {:<9} from", "name", "who holds the key", "got it");
    for (name, holder) in [
        ("front.test", "snisplit itself"),
        ("a.test", "Traefik, behind it"),
        ("www.a.test", "Traefik, behind it"),
        ("c.test", "Caddy, behind it and PROXY v2"),
    ] {
        let certificate = pebble.wait_for_certificate(&lab, name);
        let issuer = certificate.x509_text(&lab, &["-issuer"]);
        println!("   {name:<12} {holder:<34} {:<9} {}", "yes", issuer.trim());
    }
    assert!(by_lego);
    println!("   {:<12} {:<34} {:<9} the same CA", "l.test", "lego --tls, behind it", "yes");
    show_refused_orders(&lab, &pebble, &agent);
    println!();
}

/// What a tenant gets that holds only the catch-all route and asks for the names of others.
fn show_refused_orders(lab: &Lab, pebble: &Pebble, agent: &Agent) {
    println!(
        "   A tenant that holds only the catch-all route (lego behind `*`) asks for the others':"
    );
    for name in ["a.test", "front.test", "mail.a.test", "victim.test"] {
        assert!(lego(lab, pebble, 8004, &[name]).is_err(), "{name}");
        let log = agent.log();
        let mut decisions = log.lines().filter(|line| line.contains(&format!("sni=\"{name}\"")));
        let last = decisions.next_back().unwrap_or_default();
        let word = |key: &str| {
            let rest = last.split(&format!("{key}=\"")).nth(1);
            rest.and_then(|rest| rest.split('"').next()).unwrap_or("-").to_owned()
        };
        let (to, why) = (word("action"), word("reason"));
        println!("   {name:<12} {:<34} {:<9} {to}: {why}", "the hostile tenant", "no");
    }
}
