//! Flows over VLANs (802.1Q): the kernel removes the tag of a packet that arrives, and adds that of the interface that
//! the packet leaves by.

//@ engines: named

use snisplit_tests::lab::Lab;
use snisplit_tests::link::{has_ipv6, has_vlan};
use snisplit_tests::offloaded_flow::OffloadedFlow;
use snisplit_tests::record_skip;

/// The link to the client, the link to the back ends, and both are in a VLAN. Their interfaces receive no packet that
/// lacks the tag.
#[test]
fn flows_over_vlans_are_forwarded() {
    if !has_vlan() {
        return record_skip("this kernel has no VLANs (8021q)");
    }
    for which in [[true, false], [false, true], [true, true]] {
        for is_v6 in [false, true].into_iter().take(1 + usize::from(has_ipv6())) {
            let flow = OffloadedFlow::new(Lab::with_vlans(which), is_v6);
            flow.peers().transfer_both_ways(3_000_000);
            let record = flow.agent.next_record();
            let fields = (&record["engine"], &record["outcome"], &record["bytes_down"]);
            assert_eq!(
                fields,
                (&"packet".into(), &"closed".into(), &3_000_006.into()),
                "{which:?}"
            );
        }
    }
}
