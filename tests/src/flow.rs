//! A flow that is open, for tests that compare engines.

use std::net::{TcpListener, TcpStream};

use crate::agent::{self, Agent};
use crate::client_hello::ClientHello;
use crate::lab::{Lab, backend};
use crate::stream::{listen, read_exact, write};
use crate::testbed::{ANSWER, Peers};

/// All engines.
pub const ENGINES: [&str; 4] = ["copy", "splice", "sockmap", "packet"];

/// Engines whose flows keep the agent's sockets, with all that the kernel does for a socket: keepalive probes, a reset
/// when it is closed, netfilter hooks in front of it.
pub const SOCKET_ENGINES: [&str; 3] = ["copy", "splice", "sockmap"];

/// One flow through an agent. Its back end has received the ClientHello.
#[derive(Debug)]
pub struct Flow {
    /// The client's socket.
    pub client: TcpStream,
    /// The back end's socket.
    pub backend: TcpStream,
    /// The agent between them.
    pub agent: Agent,
    /// The engine of the agent's `--engine`.
    pub engine: &'static str,
    /// Bytes of the ClientHello.
    pub hello_len: usize,
    /// Bytes that the back end has answered, for the packet engine to take over; 0 for others.
    pub answer_len: usize,
    listener: TcpListener,
    lab: Lab,
}

impl Flow {
    /// Opens a flow in a new lab, through an agent with this engine.
    pub fn open(engine: &'static str) -> Self {
        Self::open_with(engine, &[])
    }

    /// Opens a flow in a new lab, through an agent with this engine and these flags.
    pub fn open_with(engine: &'static str, flags: &[&str]) -> Self {
        Self::open_in_lab(Lab::new(), engine, flags)
    }

    /// Opens a flow in this lab, through an agent with this engine and these flags.
    pub fn open_in_lab(lab: Lab, engine: &'static str, flags: &[&str]) -> Self {
        let engine_and_route = ["--engine", engine, "--route", "a.test=10.91.2.2:8001"];
        let agent = Agent::start(&lab, &[&engine_and_route[..], flags].concat());
        let listener = listen(&lab, backend(8001));
        let peers = connect_peers(&lab, &listener, engine);
        let answer_len = if engine == "packet" { ANSWER.len() } else { 0 };
        let hello_len = ClientHello::new().sni(b"a.test").encode().len();
        let Peers { client, backend } = peers;
        Self { client, backend, agent, engine, hello_len, answer_len, listener, lab }
    }

    /// Opens one more flow through the same agent.
    pub fn connect_another(&self) -> Peers {
        connect_peers(&self.lab, &self.listener, self.engine)
    }

    /// Exchanges so many messages, each as a request and a response of the same bytes. Returns the bytes in each
    /// direction.
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

    /// The lab that the flow is in.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Asserts the next record: bytes in each direction besides ClientHello and answer, the engine, and the outcome.
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

/// Opens a flow. The packet engine takes a flow over when the back end has answered, so it answers for that engine.
fn connect_peers(lab: &Lab, listener: &TcpListener, engine: &str) -> Peers {
    if engine == "packet" {
        return Peers::connect_offloaded(lab, agent::address(), listener);
    }
    Peers::connect(lab, agent::address(), listener, &ClientHello::new().sni(b"a.test"))
}
