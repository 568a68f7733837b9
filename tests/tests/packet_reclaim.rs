//! Entries of flows that have ended: no packet is translated by them, and another flow gets their memory only when
//! no program reads it.

//@ engines: named

use std::io::{ErrorKind, Write as _};
use std::mem::offset_of;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aya::maps::{HashMap, Map, MapData};
use snisplit_common::abi::packet::{
    CONTROL_PROGRAM, ControlCommand, FlowState, PACKET_TUPLES_MAP, Tuple,
};
use snisplit_tests::kernel::{Direction, TupleBytes, TupleEntryBytes, dump_map};
use snisplit_tests::lab::Lab;
use snisplit_tests::offloaded_flow::{OffloadedFlow, flow_entry_count, reset_flow};
use snisplit_tests::segment::{Endpoints, SegmentNumbers, build_segment};
use snisplit_tests::stream::{RandomStream, read_once, shutdown_write};
use snisplit_tests::test_run::{TC_ACT_REDIRECT, TCX_NEXT};
use snisplit_tests::testbed::{Peers, Testbed};
use snisplit_tests::wait::wait_until;

/// Answer of the program to a packet with the flow's numbers, perhaps from another source than the flow's peer.
fn answer(flow: &OffloadedFlow, direction: Direction, source: Option<SocketAddr>) -> u32 {
    let own = flow.arriving(direction);
    let endpoints = Endpoints { source: source.unwrap_or(own.source), ..own };
    let numbers = SegmentNumbers { seq: flow.field(direction, "snd_nxt"), ack: 1, window: 9 };
    flow.test_run(&build_segment(endpoints, numbers, &[], b"x"), None).answer
}

/// Sends a command about the flow. Returns the state that the flow is in afterwards, as a number.
fn send_command(flow: &OffloadedFlow, command: ControlCommand) -> u32 {
    let words = [0, 0, flow.slot(), command as u64, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
    // The command follows an Ethernet header of 14 bytes.
    flow.test_run_program(&flow.program_id(CONTROL_PROGRAM), &words[2..], None).answer
}

#[test]
fn a_released_flow_is_not_translated() {
    let flow = OffloadedFlow::new(Lab::new(), false);
    let state = send_command(&flow, ControlCommand::Fallback);
    assert_eq!(state, FlowState::Offloaded as u32, "an offloaded flow does not fall back");
    for direction in [Direction::Up, Direction::Down] {
        assert_eq!(answer(&flow, direction, None), TC_ACT_REDIRECT);
    }
    let state = send_command(&flow, ControlCommand::Release);
    assert_eq!(state, FlowState::Fallback as u32);
    for direction in [Direction::Up, Direction::Down] {
        assert_eq!(answer(&flow, direction, None), TCX_NEXT);
    }
}

/// The kernel may reuse the memory of a hash map entry while a program reads it, so that a tuple leads to the flow of
/// another tuple. An entry of the tuple map with a wrong flow stands for that here.
#[test]
fn a_flow_entry_ignores_packets_of_other_tuples() {
    let flow = OffloadedFlow::new(Lab::new(), false);
    let Endpoints { source: client, destination } = flow.arriving(Direction::Up);
    let stranger = SocketAddr::new(client.ip(), client.port() ^ 1);
    let data = MapData::from_pin(flow.agent.pin_path(PACKET_TUPLES_MAP)).unwrap();
    let mut map = HashMap::<_, TupleBytes, TupleEntryBytes>::try_from(Map::HashMap(data)).unwrap();
    let ports = |from: SocketAddr| [from.port(), destination.port()].map(u16::to_ne_bytes).concat();
    let own = map.keys().flatten().find(|key| key[PORTS_OFFSET..] == ports(client)).unwrap();
    let mut other = own;
    other[PORTS_OFFSET..].copy_from_slice(&ports(stranger));
    map.insert(other, map.get(&own, 0).unwrap(), 0).unwrap();
    assert_eq!(answer(&flow, Direction::Up, Some(stranger)), TCX_NEXT);
    assert_eq!(answer(&flow, Direction::Up, None), TC_ACT_REDIRECT);
}

#[test]
fn entries_of_a_reset_flow_are_reclaimed() {
    let flow = OffloadedFlow::new(Lab::new(), false);
    assert_eq!(flow_entry_count(&flow.lab), 1);
    reset_flow(&flow.lab, &flow.peers().client);
    wait_until("both maps to be empty", || {
        let tuples = dump_map(&flow.agent.pin_path(PACKET_TUPLES_MAP));
        (tuples.is_empty() && flow_entry_count(&flow.lab) == 0).then_some(())
    });
}

/// Where a tuple has its two ports, behind which it has nothing.
const PORTS_OFFSET: usize = offset_of!(Tuple, source_port);

/// Bytes that are sent at once.
const BLOCK: usize = 1 << 16;

/// Stops the senders when it is dropped, also by a panic.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends until `stop` is set. Returns the number of bytes.
fn send_until_stopped(
    mut stream: &TcpStream,
    mut random: RandomStream,
    stop: &AtomicBool,
) -> Result<usize, ErrorKind> {
    let (mut block, mut total) = ([0; BLOCK], 0);
    while !stop.load(Ordering::Relaxed) {
        random.fill(&mut block);
        stream.write_all(&block).map_err(|error| error.kind())?;
        total += BLOCK;
    }
    shutdown_write(stream);
    Ok(total)
}

/// Receives to the end of stream and verifies every byte. Returns their number.
fn receive_and_verify(stream: &TcpStream, mut random: RandomStream) -> Result<usize, ErrorKind> {
    let (mut block, mut buffer, mut total) = ([0; BLOCK], [0; BLOCK], 0);
    loop {
        let at = total % BLOCK;
        if at == 0 {
            random.fill(&mut block);
        }
        match read_once(stream, &mut buffer[at..]) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                assert!(
                    buffer[at..at + n] == block[at..at + n],
                    "a wrong byte after {total} right ones"
                );
                total += n;
            }
            Err(error) => return Err(error.kind()),
        }
    }
}

/// Every second flow is reset while all of them transfer, and new flows get its entries. The others end in order and
/// without a wrong byte.
#[test]
fn resetting_flows_does_not_disturb_others() {
    let testbed = Testbed::new(&["--engine", "packet"]);
    for turn in 0..3 {
        let all = Vec::from_iter((0..16).map(|_| testbed.connect_offloaded()));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let stop_on_panic = StopOnDrop(&stop);
            let flows = all.iter().zip(turn * 16..).map(|(Peers { client, backend }, number)| {
                let [sent, expected] = [(); 2].map(|()| RandomStream::from_seed(number));
                let stop = &stop;
                let sent = scope.spawn(move || send_until_stopped(backend, sent, stop));
                (sent, scope.spawn(move || receive_and_verify(client, expected)))
            });
            let (to_be_reset, others): (Vec<_>, Vec<_>) =
                flows.enumerate().partition(|(place, _)| place % 2 == 0);
            all.iter().step_by(2).for_each(|flow| reset_flow(&testbed.lab, &flow.client));
            for (_, (sent, received)) in to_be_reset {
                for end in [sent.join().unwrap(), received.join().unwrap()] {
                    assert_eq!(end, Err(ErrorKind::ConnectionReset));
                }
            }
            drop(stop_on_panic);
            for (_, (sent, received)) in others {
                assert_eq!(received.join().unwrap(), sent.join().unwrap());
            }
        });
    }
}
