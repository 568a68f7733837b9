//! What becomes of a flow's records when it goes: nothing is translated by them any more, and no other flow has
//! their memory before no program has.

use std::net::SocketAddr;
use std::process::Command;

use aya::maps::{HashMap, Map, MapData};
use snisplit_tests::agent::binary;
use snisplit_tests::kernel::bpftool;
use snisplit_tests::lab::Lab;
use snisplit_tests::segment::segment;
use snisplit_tests::spliced::Spliced;
use snisplit_tests::wait::until;

const REDIRECTED: u64 = 7;
/// It goes where it would have gone without the program.
const UNTOUCHED: u64 = u32::MAX as u64;
/// In `abi::packet::SpliceState`.
const SPLICED: u64 = 2;
const FALLBACK: u64 = 3;

/// What a packet of a stranger's or of the flow's becomes, either way.
fn fares(scene: &Spliced, way: &str, from: Option<SocketAddr>) -> u64 {
    let [(own, to), _] = scene.ends(way);
    let numbers = (scene.of(way, "end"), 1, 9);
    scene.run(&segment((from.unwrap_or(own), to), numbers, &[], b"x"), None).0
}

/// Asks for something by `abi::packet::Wish`; the answer is the state that the flow is in.
fn ask(scene: &Spliced, wish: u64) -> u64 {
    let words = [0, 0, scene.number(), wish, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
    // Behind an Ethernet header, which has 14 bytes.
    scene.run_by(&scene.program("sni_settle"), &words[2..], None).0
}

#[test]
fn nothing_of_a_flow_that_is_let_go_of_is_translated() {
    let scene = Spliced::new(Lab::new(), false);
    assert_eq!(ask(&scene, 0), SPLICED, "a flow that runs is not left to sockets");
    for way in ["up", "down"] {
        assert_eq!(fares(&scene, way, None), REDIRECTED);
    }
    assert_eq!(ask(&scene, 1), FALLBACK);
    for way in ["up", "down"] {
        assert_eq!(fares(&scene, way, None), UNTOUCHED);
    }
}

/// The memory of an entry that says whose packets arrive by a tuple may be another one's while it is read. Here it
/// says something wrong for good.
#[test]
fn a_flow_has_no_packets_but_its_own() {
    let scene = Spliced::new(Lab::new(), false);
    let [(client, to), _] = scene.ends("up");
    let stranger = SocketAddr::new(client.ip(), client.port() ^ 1);
    let data = MapData::from_pin(scene.pinned("tuples")).unwrap();
    let mut map = HashMap::<_, [u8; 36], [u8; 16]>::try_from(Map::HashMap(data)).unwrap();
    let ports = |from: SocketAddr| [from.port(), to.port()].map(u16::to_ne_bytes).concat();
    let own = map.keys().flatten().find(|key| key[32..] == ports(client)).unwrap();
    let mut other = own;
    other[32..].copy_from_slice(&ports(stranger));
    map.insert(other, map.get(&own, 0).unwrap(), 0).unwrap();
    assert_eq!(fares(&scene, "up", Some(stranger)), UNTOUCHED);
    assert_eq!(fares(&scene, "up", None), REDIRECTED);
}

#[test]
fn records_of_a_flow_that_is_cut_are_erased() {
    let scene = Spliced::new(Lab::new(), false);
    let client = scene.streams().0.local_addr().unwrap().to_string();
    let instance = &scene.lab.names()[1];
    let cut = ["flows", "cut", &client, "--instance", instance];
    assert!(Command::new(binary()).args(cut).status().unwrap().success());
    for map in ["flows", "tuples"] {
        until("nothing to be left", || {
            let left = bpftool(&["map", "dump", "pinned", &scene.pinned(map)]);
            left.as_array()?.is_empty().then_some(())
        });
    }
}
