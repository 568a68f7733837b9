//! A flow that has begun, for tests of what carries it.

use std::net::{TcpListener, TcpStream};

use crate::agent::{self, Agent};
use crate::client_hello::ClientHello;
use crate::lab::{Lab, backend};
use crate::stream::{accept, connect, listen, read_exact, write};

/// What every engine must do alike is tested on each of these.
pub const ENGINES: [&str; 4] = ["copy", "splice", "sockmap", "packet"];

/// Those whose flows have sockets: what the kernel does for these (keep-alive, a reset when they are closed,
/// netfilter's hooks in front of them), it does for them.
pub const SOCKET_ENGINES: [&str; 3] = ["copy", "splice", "sockmap"];

/// One flow through the agent, its greeting already at the back end.
#[derive(Debug)]
pub struct Flow {
    /// The client's socket.
    pub client: TcpStream,
    /// The back end's socket.
    pub backend: TcpStream,
    /// The agent between them.
    pub agent: Agent,
    /// The engine asked for.
    pub engine: &'static str,
    /// Bytes of the greeting.
    pub hello_len: usize,
    /// Bytes of the answer.
    pub answer_len: usize,
    listener: TcpListener,
    lab: Lab,
}

impl Flow {
    /// Starts everything, greets, and reads the greeting at the back end.
    pub fn open(engine: &'static str) -> Self {
        Self::open_with(engine, &[])
    }

    /// The same, the agent started with these flags too.
    pub fn open_with(engine: &'static str, flags: &[&str]) -> Self {
        Self::open_in_lab(Lab::new(), engine, flags)
    }

    /// The same in a lab of the caller's making.
    pub fn open_in_lab(lab: Lab, engine: &'static str, flags: &[&str]) -> Self {
        let engine_and_route = ["--engine", engine, "--route", "a.test=10.91.2.2:8001"];
        let agent = Agent::start(&lab, &[&engine_and_route[..], flags].concat());
        let listener = listen(&lab, backend(8001));
        let client = connect(&lab, agent::address());
        let hello = ClientHello::new().sni(b"a.test").encode();
        write(&client, &hello);
        let backend = accept(&listener);
        assert_eq!(read_exact(&backend, hello.len()), hello);
        let answer_len = answer_if_packet(engine, &client, &backend);
        Self { client, backend, agent, engine, hello_len: hello.len(), answer_len, listener, lab }
    }

    /// One more flow beside this one: client and back end.
    pub fn connect_another(&self) -> (TcpStream, TcpStream) {
        let client = connect(&self.lab, agent::address());
        let hello = ClientHello::new().sni(b"a.test").encode();
        write(&client, &hello);
        let backend = accept(&self.listener);
        assert_eq!(read_exact(&backend, hello.len()), hello);
        answer_if_packet(self.engine, &client, &backend);
        (client, backend)
    }

    /// Messages to and fro, each heard before the next is said. Bytes each way.
    pub fn exchange_messages(&self, messages: usize) -> usize {
        let Self { client, backend, .. } = self;
        for number in 0..messages {
            let message = number.to_be_bytes();
            write(client, &message);
            assert_eq!(read_exact(backend, message.len()), message);
            write(backend, &message);
            assert_eq!(read_exact(client, message.len()), message);
        }
        messages * size_of::<usize>()
    }

    /// Where it runs.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The record must say what was carried, by which engine, and how it ended.
    #[track_caller]
    pub fn assert_record(&self, up: usize, down: usize, outcome: &str) {
        let record = self.agent.next_record();
        let actual =
            (&record["engine"], &record["bytes_up"], &record["bytes_down"], &record["outcome"]);
        let expected = (self.engine, up + self.hello_len, down + self.answer_len, outcome);
        assert_eq!(actual.0, expected.0, "{record}");
        assert_eq!((actual.1, actual.2), (&expected.1.into(), &expected.2.into()), "{record}");
        assert_eq!(actual.3, expected.3, "{record}");
        assert_eq!(record["backend"], "10.91.2.2:8001", "{record}");
    }
}

/// The packet engine takes a flow when its back end has answered, and before the client says more, as
/// in TLS.
fn answer_if_packet(engine: &str, client: &TcpStream, backend: &TcpStream) -> usize {
    if engine != "packet" {
        return 0;
    }
    let answer = b"an answer";
    write(backend, answer);
    assert_eq!(read_exact(client, answer.len()), answer);
    answer.len()
}
