//! Flows that come or go by the interface of a VLAN (802.1Q): packets get its tag, and lose the other one's.

//@ engines: named

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::lab::{Lab, PROXY6};
use snisplit_tests::link::{has_ipv6, has_vlan};
use snisplit_tests::offloaded_flow::{OffloadedFlow, connect_offloaded, transfer_both_ways};
use snisplit_tests::record_skip;
use snisplit_tests::stream::listen;

/// Either line, and both: the links in the VLAN hear nothing that has not its tag.
#[test]
fn flows_over_vlans_are_forwarded() {
    if !has_vlan() {
        return record_skip("this kernel has no VLANs (8021q)");
    }
    for which in [[true, false], [false, true], [true, true]] {
        for is_v6 in [false, true].into_iter().take(1 + usize::from(has_ipv6())) {
            let lab = Lab::with_vlans(which);
            let route = format!("a.test={}", OffloadedFlow::backend_address(is_v6));
            let agent = Agent::start(&lab, &["--engine", "packet", "--route", &route]);
            let listener = listen(&lab, OffloadedFlow::backend_address(is_v6).parse().unwrap());
            let at = if is_v6 { (PROXY6, agent::PORT).into() } else { agent::address() };
            let pair = connect_offloaded(&lab, at, &listener);
            transfer_both_ways(&pair, 3_000_000);
            let record = agent.next_record();
            let fields = (&record["engine"], &record["outcome"], &record["bytes_down"]);
            assert_eq!(
                fields,
                (&"packet".into(), &"closed".into(), &3_000_006.into()),
                "{which:?}"
            );
        }
    }
}
