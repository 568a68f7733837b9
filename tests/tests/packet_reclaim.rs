//! What becomes of a flow's records when it goes: nothing is translated by them any more, and no other flow has
//! their memory before no program has.

//@ engines: named

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aya::maps::{HashMap, Map, MapData};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::bpftool;
use snisplit_tests::lab::Lab;
use snisplit_tests::offloaded_flow::{
    OffloadedFlow, connect_offloaded, flow_entry_count, reset_flow,
};
use snisplit_tests::segment::build_segment;
use snisplit_tests::stream::{RandomStream, listen, read_once, shutdown_write};
use snisplit_tests::wait::wait_until;

const TC_ACT_REDIRECT: u64 = 7;
/// It goes where it would have gone without the program.
const TCX_NEXT: u64 = u32::MAX as u64;
/// In `abi::packet::SpliceState`.
const OFFLOADED: u64 = 2;
const FALLBACK: u64 = 3;

/// What a packet of a stranger's or of the flow's becomes, either way.
fn verdict(flow: &OffloadedFlow, direction: &str, from: Option<SocketAddr>) -> u64 {
    let [(own, to), _] = flow.tuples(direction);
    let numbers = (flow.field(direction, "snd_nxt"), 1, 9);
    flow.test_run(&build_segment((from.unwrap_or(own), to), numbers, &[], b"x"), None).0
}

/// Asks for something by `abi::packet::Wish`; the answer is the state that the flow is in.
fn send_command(flow: &OffloadedFlow, command: u64) -> u64 {
    let words = [0, 0, flow.slot(), command, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
    // Behind an Ethernet header, which has 14 bytes.
    flow.test_run_program(&flow.program_id("sni_ctl"), &words[2..], None).0
}

#[test]
fn a_released_flow_is_not_translated() {
    let flow = OffloadedFlow::new(Lab::new(), false);
    assert_eq!(send_command(&flow, 0), OFFLOADED, "a flow that runs is not left to sockets");
    for direction in ["up", "down"] {
        assert_eq!(verdict(&flow, direction, None), TC_ACT_REDIRECT);
    }
    assert_eq!(send_command(&flow, 1), FALLBACK);
    for direction in ["up", "down"] {
        assert_eq!(verdict(&flow, direction, None), TCX_NEXT);
    }
}

/// The memory of an entry that says whose packets arrive by a tuple may be another one's while it is read. Here it
/// says something wrong for good.
#[test]
fn a_flow_entry_ignores_packets_of_other_tuples() {
    let flow = OffloadedFlow::new(Lab::new(), false);
    let [(client, to), _] = flow.tuples("up");
    let stranger = SocketAddr::new(client.ip(), client.port() ^ 1);
    let data = MapData::from_pin(flow.map_path("tuples")).unwrap();
    let mut map = HashMap::<_, [u8; 36], [u8; 16]>::try_from(Map::HashMap(data)).unwrap();
    let ports = |from: SocketAddr| [from.port(), to.port()].map(u16::to_ne_bytes).concat();
    let own = map.keys().flatten().find(|key| key[32..] == ports(client)).unwrap();
    let mut other = own;
    other[32..].copy_from_slice(&ports(stranger));
    map.insert(other, map.get(&own, 0).unwrap(), 0).unwrap();
    assert_eq!(verdict(&flow, "up", Some(stranger)), TCX_NEXT);
    assert_eq!(verdict(&flow, "up", None), TC_ACT_REDIRECT);
}

#[test]
fn entries_of_a_reset_flow_are_reclaimed() {
    let flow = OffloadedFlow::new(Lab::new(), false);
    reset_flow(&flow.lab, &flow.streams().0);
    wait_until("nothing to be left", || {
        let tuples = bpftool(&["map", "dump", "pinned", &flow.map_path("tuples")]);
        (tuples.as_array()?.is_empty() && flow_entry_count(&flow.lab) == 0).then_some(())
    });
}

const BLOCK: usize = 1 << 16;

/// Has senders stop once it is dropped.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends until it is to stop, and says how much that was.
fn send_until_stopped(
    mut stream: &TcpStream,
    mut noise: RandomStream,
    stop: &AtomicBool,
) -> Result<usize, ErrorKind> {
    let (mut block, mut total) = ([0; BLOCK], 0);
    while !stop.load(Ordering::Relaxed) {
        noise.fill(&mut block);
        stream.write_all(&block).map_err(|error| error.kind())?;
        total += BLOCK;
    }
    shutdown_write(stream);
    Ok(total)
}

/// Receives to the end. Whatever comes has to be right.
fn receive_and_verify(stream: &TcpStream, mut noise: RandomStream) -> Result<usize, ErrorKind> {
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
fn resetting_flows_does_not_disturb_others() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &["--engine", "packet", "--route", "a.test=10.91.2.2:8001"]);
    let listener = listen(&lab, OffloadedFlow::backend_address(false).parse().unwrap());
    for turn in 0..3 {
        let pairs =
            Vec::from_iter((0..16).map(|_| connect_offloaded(&lab, agent::address(), &listener)));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            // Whatever is wrong here.
            let stopped = StopOnDrop(&stop);
            let flows = pairs.iter().zip(turn * 16..).map(|((client, server), number)| {
                let (noise, stop) = (RandomStream::from_seed(number), &stop);
                let sent = scope.spawn(move || send_until_stopped(server, noise, stop));
                (
                    sent,
                    scope
                        .spawn(move || receive_and_verify(client, RandomStream::from_seed(number))),
                )
            });
            let (to_be_cut, others): (Vec<_>, Vec<_>) =
                flows.enumerate().partition(|(place, _)| place % 2 == 0);
            pairs.iter().step_by(2).for_each(|(client, _)| reset_flow(&lab, client));
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
