//! Flows of the packet engine, and its programs to run on packets of the test's own (`BPF_PROG_TEST_RUN`).

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use aya::maps::{Array, Map, MapData};
use serde_json::Value;
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{
    FlowEntry, INGRESS_PROGRAM, PACKET_FLOWS_MAP, PACKET_TUPLES_MAP,
};

use crate::agent::{self, Agent};
use crate::kernel::{bpftool, dump_map, pin_path, program_id};
use crate::lab::{Lab, PROXY6};
use crate::segment::Endpoints;
use crate::stream::listen;
use crate::testbed::Peers;

/// Bytes of an entry of the packet engine's flow map.
pub type FlowEntryBytes = [u8; size_of::<FlowEntry>()];

/// A flow entry, and the slot of the flow map that it is in.
#[derive(Clone, Debug)]
pub struct FlowSlot {
    /// Index in the flow map.
    pub slot: u64,
    /// The entry, as bpftool shows it.
    pub entry: Value,
}

/// Answer of a program, and the packet that it made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRunResult {
    /// Return value, such as `TC_ACT_REDIRECT`.
    pub answer: u32,
    /// The packet after the run.
    pub packet: Vec<u8>,
}

/// Has the agent reset the flow of this client.
pub fn reset_flow(lab: &Lab, client: &TcpStream) {
    let client = client.local_addr().unwrap().to_string();
    let args = ["flows", "reset", &client, "--instance", lab.namespace_names()[1]];
    let done = Command::new(agent::binary_path()).args(args).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// Number of flow entries in use, of the agent with the instance name of this lab.
pub fn flow_entry_count(lab: &Lab) -> usize {
    let path = pin_path(lab.namespace_names()[1], PACKET_FLOWS_MAP);
    let map = Map::Array(MapData::from_pin(path).unwrap());
    let entries = Array::<_, FlowEntryBytes>::try_from(map).unwrap();
    entries.iter().filter(|entry| entry.as_ref().unwrap().iter().any(|byte| *byte != 0)).count()
}

/// Finds the flow entry that an entry of the tuple map refers to.
pub fn lookup_flow_entry(instance: &str, tuple_entry: &Value) -> FlowSlot {
    let slot = tuple_entry["formatted"]["value"]["slot"].as_u64().unwrap();
    let key = (slot as u32).to_ne_bytes().map(|byte| byte.to_string());
    let path = pin_path(instance, PACKET_FLOWS_MAP);
    let args =
        [&["map", "lookup", "pinned", &path, "key"], &key.each_ref().map(String::as_str)[..]];
    FlowSlot { slot, entry: bpftool(&args.concat())["formatted"]["value"].clone() }
}

/// A flow of the packet engine, and the engine's programs.
pub struct OffloadedFlow {
    /// The lab that it is in.
    pub lab: Lab,
    /// The agent that opened it.
    pub agent: Agent,
    peers: Peers,
    ingress_program: String,
    found: FlowSlot,
}

impl OffloadedFlow {
    /// Starts an agent in this lab and opens a flow, all of it in one address family.
    pub fn new(lab: Lab, is_v6: bool) -> Self {
        Self::to_backend(lab, Self::backend_address(is_v6))
    }

    /// Starts an agent in this lab and opens a flow to a back end at this address.
    pub fn to_backend(lab: Lab, backend: SocketAddr) -> Self {
        let route = format!("a.test={backend}");
        let agent = Agent::start(&lab, &["--engine", "packet", "--route", &route]);
        Self::with_agent(lab, agent, backend)
    }

    /// Opens a flow through an agent that has the packet engine and a route to `backend`.
    pub fn with_agent(lab: Lab, agent: Agent, backend: SocketAddr) -> Self {
        let listener = listen(&lab, backend);
        let address = Self::agent_address(backend.is_ipv6());
        let peers = Peers::connect_offloaded(&lab, address, &listener);
        let ingress_program = program_id(agent.pid(), INGRESS_PROGRAM);
        let tuples = dump_map(&agent.pin_path(PACKET_TUPLES_MAP));
        let [first, _] = tuples.as_slice() else { panic!("{tuples:?} {}", agent.metrics(&lab)) };
        let found = lookup_flow_entry(agent.instance(), first);
        Self { lab, agent, peers, ingress_program, found }
    }

    /// Index of its entry in the flow map.
    pub const fn slot(&self) -> u64 {
        self.found.slot
    }

    /// Address of the back end in this family.
    pub fn backend_address(is_v6: bool) -> SocketAddr {
        if is_v6 { "[fd91:2::2]:8001" } else { "10.91.2.2:8001" }.parse().unwrap()
    }

    /// Address of the agent in this family, as the client sees it.
    pub fn agent_address(is_v6: bool) -> SocketAddr {
        if is_v6 { (PROXY6, agent::PORT).into() } else { agent::address() }
    }

    /// A number in the translation of a direction, or in the state of the peer that sends in it.
    pub fn field(&self, direction: Direction, name: &str) -> u32 {
        let (translation, peer_state) = match direction {
            Direction::Up => ("to_backend", "client_state"),
            Direction::Down => ("to_client", "backend_state"),
        };
        let entry = &self.found.entry;
        let [translated, of_peer] =
            [translation, peer_state].map(|part| entry[part][name].as_u64());
        translated.or(of_peer).unwrap_or_else(|| panic!("{name}: {entry}")) as u32
    }

    /// Endpoints of packets of this direction as they arrive at the proxy.
    pub fn arriving(&self, direction: Direction) -> Endpoints {
        Endpoints::sent_by(match direction {
            Direction::Up => &self.peers.client,
            Direction::Down => &self.peers.backend,
        })
    }

    /// Endpoints of packets of this direction as they leave the proxy.
    pub fn leaving(&self, direction: Direction) -> Endpoints {
        Endpoints::sent_by(match direction {
            Direction::Up => &self.peers.backend,
            Direction::Down => &self.peers.client,
        })
        .reversed()
    }

    /// The sockets of its peers.
    pub const fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Id of a program of the agent.
    pub fn program_id(&self, name: &str) -> String {
        program_id(self.agent.pid(), name)
    }

    /// Runs the program that sees arriving packets, on a packet and perhaps with a `struct __sk_buff`.
    pub fn test_run(&self, packet: &[u8], context: Option<&[u8]>) -> TestRunResult {
        self.test_run_program(&self.ingress_program, packet, context)
    }

    /// Runs the program with this id on a packet.
    pub fn test_run_program(
        &self,
        program_id: &str,
        packet: &[u8],
        context: Option<&[u8]>,
    ) -> TestRunResult {
        let file = |name: &str| self.lab.dir().join(name).to_str().unwrap().to_owned();
        let (input, output, context_file) = (file("in"), file("out"), file("context"));
        fs::write(&input, packet).unwrap();
        let _absent_before_the_first_run = fs::remove_file(&output);
        let mut args = vec!["-j", "prog", "run", "id", program_id];
        args.extend(["data_in", &input, "data_out", &output]);
        if let Some(context) = context {
            fs::write(&context_file, context).unwrap();
            args.extend(["ctx_in", &context_file]);
        }
        let done = self.lab.in_proxy(|| Command::new("bpftool").args(&args).output()).unwrap();
        let result: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
        let Some(answer) = result["retval"].as_u64() else { panic!("{args:?}: {done:?}") };
        TestRunResult { answer: answer as u32, packet: fs::read(&output).unwrap() }
    }
}
