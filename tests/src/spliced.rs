//! Flows that the packet engine has, and its very program to try packets on (`BPF_PROG_TEST_RUN`).

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use aya::maps::{Array, Map, MapData};
use serde_json::Value;

use crate::agent::{self, Agent};
use crate::hello::Hello;
use crate::kernel::{bpftool, program};
use crate::lab::{Lab, PROXY6};
use crate::stream::{Noise, accept, connect, finish, hash_all, listen, read_some, write};

/// Greets there, and has the back end answer: then the engine has the flow. The client, and the back end.
pub fn begin(lab: &Lab, at: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(lab, at);
    let hello = Hello::new().sni(b"a.test").bytes();
    write(&client, &hello);
    let server = accept(listener);
    read_some(&server, hello.len());
    write(&server, b"answer");
    assert_eq!(read_some(&client, 6), b"answer");
    (client, server)
}

/// Both ways at once, checked, and ended.
pub fn carry((client, server): &(TcpStream, TcpStream), bytes: usize) {
    thread::scope(|scope| {
        for (from, to) in [(client, server), (server, client)] {
            let sending = scope.spawn(move || {
                let hash = Noise::default().send(from, bytes);
                finish(from);
                hash
            });
            scope.spawn(move || assert_eq!(hash_all(to), (bytes, sending.join().unwrap())));
        }
    });
}

/// Has the agent cut the flow of this client.
pub fn cut(lab: &Lab, client: &TcpStream) {
    let client = client.local_addr().unwrap().to_string();
    let words = ["flows", "cut", &client, "--instance", lab.names()[1]];
    let done = Command::new(agent::binary()).args(words).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// Where a map of the packet engine's is that an agent has in this lab.
pub fn pinned(lab: &Lab, map: &str) -> String {
    format!("/sys/fs/bpf/snisplit/{}/packet_{map}", lab.names()[1])
}

/// How many records of flows are in use there.
pub fn records(lab: &Lab) -> usize {
    let data = MapData::from_pin(pinned(lab, "flows")).unwrap();
    let table = Array::<_, [u8; 384]>::try_from(Map::Array(data)).unwrap();
    table.iter().filter(|record| *record.as_ref().unwrap() != [0; 384]).count()
}

/// The record of a flow among an instance's pins, by what leads to it in `packet_tuples`, and where it is.
pub fn record(instance: &str, leg: &Value) -> (u64, Value) {
    let slot = leg["formatted"]["value"]["slot"].as_u64().unwrap();
    let key = (slot as u32).to_ne_bytes().map(|byte| byte.to_string());
    let path = format!("/sys/fs/bpf/snisplit/{instance}/packet_flows");
    let words =
        [&["map", "lookup", "pinned", &path, "key"], &key.each_ref().map(String::as_str)[..]];
    (slot, bpftool(&words.concat())["formatted"]["value"].clone())
}

/// A flow that the kernel has, and its program.
pub struct Spliced {
    /// Where it is.
    pub lab: Lab,
    agent: Agent,
    streams: (TcpStream, TcpStream),
    program: String,
    slot: u64,
    record: Value,
}

impl Spliced {
    /// In this lab.
    pub fn new(lab: Lab, is_v6: bool) -> Self {
        Self::towards(lab, Self::backend(is_v6).parse().unwrap())
    }

    /// The same, to a back end of that address.
    pub fn towards(lab: Lab, to: SocketAddr) -> Self {
        let route = format!("a.test={to}");
        let agent = Agent::start(&lab, &["--engine", "packet", "--route", &route]);
        Self::by(lab, agent, to)
    }

    /// By an agent that has the engine, and a route there.
    pub fn by(lab: Lab, agent: Agent, to: SocketAddr) -> Self {
        let listener = listen(&lab, to);
        let at = if to.is_ipv6() { (PROXY6, agent::PORT).into() } else { agent::address() };
        let streams = begin(&lab, at, &listener);
        let program = program(agent.pid(), "sni_in");
        let all = bpftool(&["map", "dump", "pinned", &pinned(&lab, "tuples")]);
        let [one, _] = all.as_array().unwrap().as_slice() else {
            panic!("{all} {}", agent.metrics(&lab))
        };
        let (slot, record) = record(lab.names()[1], one);
        Self { lab, agent, streams, program, slot, record }
    }

    /// Where a map of the agent's is.
    pub fn pinned(&self, map: &str) -> String {
        pinned(&self.lab, map)
    }

    /// Where its record is.
    pub const fn slot(&self) -> u64 {
        self.slot
    }

    /// The back end of that family.
    pub const fn backend(is_v6: bool) -> &'static str {
        if is_v6 { "[fd91:2::2]:8001" } else { "10.91.2.2:8001" }
    }

    /// A number of a direction, or of whoever's packets go there.
    pub fn of(&self, way: &str, field: &str) -> u32 {
        let from = if way == "up" { "client_state" } else { "backend_state" };
        let direction = if way == "up" { "to_backend" } else { "to_client" };
        let [by_way, by_peer] = [direction, from].map(|part| self.record[part][field].as_u64());
        by_way.or(by_peer).unwrap() as u32
    }

    /// The peer whose packets go that way, and where they go; and the same of the other one.
    pub fn ends(&self, way: &str) -> [(SocketAddr, SocketAddr); 2] {
        let of = |stream: &TcpStream| (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let (client, server) = self.streams();
        match way {
            "up" => [of(client), of(server)],
            _ => [of(server), of(client)],
        }
    }

    /// The client, and the back end.
    pub const fn streams(&self) -> &(TcpStream, TcpStream) {
        &self.streams
    }

    /// Another program of the agent's.
    pub fn program(&self, name: &str) -> String {
        program(self.agent.pid(), name)
    }

    /// What the program says, and what it has made of a packet.
    pub fn run(&self, packet: &[u8], context: Option<&[u8]>) -> (u64, Vec<u8>) {
        self.run_by(&self.program, packet, context)
    }

    /// The same of another one.
    pub fn run_by(&self, by: &str, packet: &[u8], context: Option<&[u8]>) -> (u64, Vec<u8>) {
        let file = |name: &str| self.lab.folder().join(name).to_str().unwrap().to_owned();
        let (input, output, about) = (file("in"), file("out"), file("context"));
        std::fs::write(&input, packet).unwrap();
        let _none_yet = std::fs::remove_file(&output);
        let mut words = vec!["-j", "prog", "run", "id", by];
        words.extend(["data_in", &input, "data_out", &output]);
        if let Some(context) = context {
            std::fs::write(&about, context).unwrap();
            words.extend(["ctx_in", &about]);
        }
        let done = self.lab.proxy(|| Command::new("bpftool").args(&words).output()).unwrap();
        let said: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
        let Some(answer) = said["retval"].as_u64() else { panic!("{words:?}: {done:?}") };
        (answer, std::fs::read(&output).unwrap())
    }
}
