//! Flows that the packet engine has, and its very program to try packets on (`BPF_PROG_TEST_RUN`).

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use aya::maps::{Array, Map, MapData};
use serde_json::Value;

use crate::agent::{self, Agent};
use crate::client_hello::ClientHello;
use crate::kernel::{bpftool, program_id};
use crate::lab::{Lab, PROXY6};
use crate::stream::{
    RandomStream, accept, connect, listen, read_all_hashed, read_exact, shutdown_write, write,
};

/// Greets there, and has the back end answer: then the engine has the flow. The client, and the back end.
pub fn connect_offloaded(
    lab: &Lab,
    address: SocketAddr,
    listener: &TcpListener,
) -> (TcpStream, TcpStream) {
    let client = connect(lab, address);
    let hello = ClientHello::new().sni(b"a.test").encode();
    write(&client, &hello);
    let server = accept(listener);
    read_exact(&server, hello.len());
    write(&server, b"answer");
    assert_eq!(read_exact(&client, 6), b"answer");
    (client, server)
}

/// Both ways at once, checked, and ended.
pub fn transfer_both_ways((client, server): &(TcpStream, TcpStream), bytes: usize) {
    thread::scope(|scope| {
        for (from, to) in [(client, server), (server, client)] {
            let sending = scope.spawn(move || {
                let hash = RandomStream::default().send(from, bytes);
                shutdown_write(from);
                hash
            });
            scope.spawn(move || assert_eq!(read_all_hashed(to), (bytes, sending.join().unwrap())));
        }
    });
}

/// Has the agent cut the flow of this client.
pub fn reset_flow(lab: &Lab, client: &TcpStream) {
    let client = client.local_addr().unwrap().to_string();
    let words = ["flows", "reset", &client, "--instance", lab.namespace_names()[1]];
    let done = Command::new(agent::binary_path()).args(words).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// Where a map of the packet engine's is that an agent has in this lab.
pub fn map_path(lab: &Lab, map: &str) -> String {
    format!("/sys/fs/bpf/snisplit/{}/packet_{map}", lab.namespace_names()[1])
}

/// How many records of flows are in use there.
pub fn flow_entry_count(lab: &Lab) -> usize {
    let data = MapData::from_pin(map_path(lab, "flows")).unwrap();
    let table = Array::<_, [u8; 384]>::try_from(Map::Array(data)).unwrap();
    table.iter().filter(|record| *record.as_ref().unwrap() != [0; 384]).count()
}

/// The record of a flow among an instance's pins, by what leads to it in `packet_tuples`, and where it is.
pub fn lookup_flow_entry(instance: &str, tuple_entry: &Value) -> (u64, Value) {
    let slot = tuple_entry["formatted"]["value"]["slot"].as_u64().unwrap();
    let key = (slot as u32).to_ne_bytes().map(|byte| byte.to_string());
    let path = format!("/sys/fs/bpf/snisplit/{instance}/packet_flows");
    let words =
        [&["map", "lookup", "pinned", &path, "key"], &key.each_ref().map(String::as_str)[..]];
    (slot, bpftool(&words.concat())["formatted"]["value"].clone())
}

/// A flow that the kernel has, and its program.
pub struct OffloadedFlow {
    /// Where it is.
    pub lab: Lab,
    agent: Agent,
    streams: (TcpStream, TcpStream),
    program: String,
    slot: u64,
    entry: Value,
}

impl OffloadedFlow {
    /// In this lab.
    pub fn new(lab: Lab, is_v6: bool) -> Self {
        Self::to_backend(lab, Self::backend_address(is_v6).parse().unwrap())
    }

    /// The same, to a back end of that address.
    pub fn to_backend(lab: Lab, to: SocketAddr) -> Self {
        let route = format!("a.test={to}");
        let agent = Agent::start(&lab, &["--engine", "packet", "--route", &route]);
        Self::with_agent(lab, agent, to)
    }

    /// By an agent that has the engine, and a route there.
    pub fn with_agent(lab: Lab, agent: Agent, to: SocketAddr) -> Self {
        let listener = listen(&lab, to);
        let address = if to.is_ipv6() { (PROXY6, agent::PORT).into() } else { agent::address() };
        let streams = connect_offloaded(&lab, address, &listener);
        let program = program_id(agent.pid(), "sni_in");
        let all = bpftool(&["map", "dump", "pinned", &map_path(&lab, "tuples")]);
        let [one, _] = all.as_array().unwrap().as_slice() else {
            panic!("{all} {}", agent.metrics(&lab))
        };
        let (slot, entry) = lookup_flow_entry(lab.namespace_names()[1], one);
        Self { lab, agent, streams, program, slot, entry }
    }

    /// Where a map of the agent's is.
    pub fn map_path(&self, map: &str) -> String {
        map_path(&self.lab, map)
    }

    /// Where its record is.
    pub const fn slot(&self) -> u64 {
        self.slot
    }

    /// The back end of that family.
    pub const fn backend_address(is_v6: bool) -> &'static str {
        if is_v6 { "[fd91:2::2]:8001" } else { "10.91.2.2:8001" }
    }

    /// A number of a direction, or of whoever's packets go there.
    pub fn field(&self, direction: &str, field: &str) -> u32 {
        let from = if direction == "up" { "client_state" } else { "backend_state" };
        let direction = if direction == "up" { "to_backend" } else { "to_client" };
        let [in_direction, in_peer_state] =
            [direction, from].map(|part| self.entry[part][field].as_u64());
        in_direction.or(in_peer_state).unwrap() as u32
    }

    /// The peer whose packets go that way, and where they go; and the same of the other one.
    pub fn tuples(&self, direction: &str) -> [(SocketAddr, SocketAddr); 2] {
        let of = |stream: &TcpStream| (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let (client, server) = self.streams();
        match direction {
            "up" => [of(client), of(server)],
            _ => [of(server), of(client)],
        }
    }

    /// The client, and the back end.
    pub const fn streams(&self) -> &(TcpStream, TcpStream) {
        &self.streams
    }

    /// Another program of the agent's.
    pub fn program_id(&self, name: &str) -> String {
        program_id(self.agent.pid(), name)
    }

    /// What the program says, and what it has made of a packet.
    pub fn test_run(&self, packet: &[u8], context: Option<&[u8]>) -> (u64, Vec<u8>) {
        self.test_run_program(&self.program, packet, context)
    }

    /// The same of another one.
    pub fn test_run_program(
        &self,
        program_id: &str,
        packet: &[u8],
        context: Option<&[u8]>,
    ) -> (u64, Vec<u8>) {
        let file = |name: &str| self.lab.dir().join(name).to_str().unwrap().to_owned();
        let (input, output, context_file) = (file("in"), file("out"), file("context"));
        std::fs::write(&input, packet).unwrap();
        let _none_yet = std::fs::remove_file(&output);
        let mut words = vec!["-j", "prog", "run", "id", program_id];
        words.extend(["data_in", &input, "data_out", &output]);
        if let Some(context) = context {
            std::fs::write(&context_file, context).unwrap();
            words.extend(["ctx_in", &context_file]);
        }
        let done = self.lab.in_proxy(|| Command::new("bpftool").args(&words).output()).unwrap();
        let result: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
        let Some(retval) = result["retval"].as_u64() else { panic!("{words:?}: {done:?}") };
        (retval, std::fs::read(&output).unwrap())
    }
}
