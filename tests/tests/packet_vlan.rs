//! Flows that come or go by the interface of a VLAN (802.1Q): packets get its tag, and lose the other one's.

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::lab::{Lab, PROXY6};
use snisplit_tests::line::{has_ipv6, has_vlan};
use snisplit_tests::skip;
use snisplit_tests::spliced::{Spliced, begin, carry};
use snisplit_tests::stream::listen;

/// Either line, and both: the links in the VLAN hear nothing that has not its tag.
#[test]
fn flows_by_vlans_are_carried() {
    if !has_vlan() {
        return skip("this kernel has no VLANs (8021q)");
    }
    for which in [[true, false], [false, true], [true, true]] {
        for is_v6 in [false, true].into_iter().take(1 + usize::from(has_ipv6())) {
            let lab = Lab::tagged(which);
            let route = format!("a.test={}", Spliced::backend(is_v6));
            let agent = Agent::start(&lab, &["--engine", "packet", "--route", &route]);
            let listener = listen(&lab, Spliced::backend(is_v6).parse().unwrap());
            let at = if is_v6 { (PROXY6, agent::PORT).into() } else { agent::address() };
            let pair = begin(&lab, at, &listener);
            carry(&pair, 3_000_000);
            let record = agent.record();
            let told = (&record["engine"], &record["outcome"], &record["down"]);
            assert_eq!(told, (&"packet".into(), &"closed".into(), &3_000_006.into()), "{which:?}");
        }
    }
}
