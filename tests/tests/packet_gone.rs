//! What becomes of a flow's records when it goes: nothing is translated by them any more, and no other flow has
//! their memory before no program has.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aya::maps::{HashMap, Map, MapData};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::bpftool;
use snisplit_tests::lab::Lab;
use snisplit_tests::segment::segment;
use snisplit_tests::spliced::{Spliced, begin, cut, records};
use snisplit_tests::stream::{Noise, finish, listen, read_once};
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
    let numbers = (scene.of(way, "snd_nxt"), 1, 9);
    scene.run(&segment((from.unwrap_or(own), to), numbers, &[], b"x"), None).0
}

/// Asks for something by `abi::packet::Wish`; the answer is the state that the flow is in.
fn ask(scene: &Spliced, wish: u64) -> u64 {
    let words = [0, 0, scene.slot(), wish, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
    // Behind an Ethernet header, which has 14 bytes.
    scene.run_by(&scene.program("sni_ctl"), &words[2..], None).0
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
    cut(&scene.lab, &scene.streams().0);
    until("nothing to be left", || {
        let tuples = bpftool(&["map", "dump", "pinned", &scene.pinned("tuples")]);
        (tuples.as_array()?.is_empty() && records(&scene.lab) == 0).then_some(())
    });
}

const BLOCK: usize = 1 << 16;

/// Has senders stop once it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends until it is to stop, and says how much that was.
fn send(mut stream: &TcpStream, mut noise: Noise, stop: &AtomicBool) -> Result<usize, ErrorKind> {
    let (mut block, mut total) = ([0; BLOCK], 0);
    while !stop.load(Ordering::Relaxed) {
        noise.fill(&mut block);
        stream.write_all(&block).map_err(|error| error.kind())?;
        total += BLOCK;
    }
    finish(stream);
    Ok(total)
}

/// Receives to the end. Whatever comes has to be right.
fn receive(stream: &TcpStream, mut noise: Noise) -> Result<usize, ErrorKind> {
    let (mut block, mut buffer, mut total) = ([0; BLOCK], [0; BLOCK], 0);
    loop {
        let at = total % BLOCK;
        if at == 0 {
            noise.fill(&mut block);
        }
        match read_once(stream, &mut buffer[at..]) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                assert!(buffer[at..at + n] == block[at..at + n], "wrong behind {total} bytes");
                total += n;
            }
            Err(error) => return Err(error.kind()),
        }
    }
}

/// Every second one is cut while all of them are full of bytes, and the next ones have their memory: what arrives
/// is right, and nothing ends that is not to.
#[test]
fn flows_are_cut_among_others() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &["--engine", "packet", "--route", "a.test=10.91.2.2:8001"]);
    let listener = listen(&lab, Spliced::backend(false).parse().unwrap());
    for turn in 0..3 {
        let pairs = Vec::from_iter((0..16).map(|_| begin(&lab, agent::address(), &listener)));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            // Whatever is wrong here.
            let stopped = Stop(&stop);
            let flows = pairs.iter().zip(turn * 16..).map(|((client, server), number)| {
                let (noise, stop) = (Noise::of(number), &stop);
                let sent = scope.spawn(move || send(server, noise, stop));
                (sent, scope.spawn(move || receive(client, Noise::of(number))))
            });
            let (to_be_cut, others): (Vec<_>, Vec<_>) =
                flows.enumerate().partition(|(place, _)| place % 2 == 0);
            pairs.iter().step_by(2).for_each(|(client, _)| cut(&lab, client));
            for (_, (sent, received)) in to_be_cut {
                for end in [sent.join().unwrap(), received.join().unwrap()] {
                    assert_eq!(end, Err(ErrorKind::ConnectionReset));
                }
            }
            drop(stopped);
            for (_, (sent, received)) in others {
                assert_eq!(received.join().unwrap(), sent.join().unwrap());
            }
        });
    }
    drop(agent);
}
