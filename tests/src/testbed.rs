//! A lab with one agent and one listening back end, for tests that open flows of their own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::agent::{self, Agent};
use crate::client_hello::ClientHello;
use crate::lab::{Lab, backend};
use crate::stream::{
    RandomStream, accept, connect, listen, read_all, read_all_hashed, read_exact, shutdown_write,
    write,
};

/// Flags of the one route.
pub const ROUTE: [&str; 2] = ["--route", "a.test=10.91.2.2:8001"];
/// What [`Peers::connect_offloaded`] has the back end answer.
pub const ANSWER: &[u8] = b"answer";

/// An agent with the route [`ROUTE`], and the listener that the route leads to.
#[derive(Debug)]
pub struct Testbed {
    /// The agent.
    pub agent: Agent,
    /// The listener of the back end.
    pub listener: TcpListener,
    /// The lab that both are in.
    pub lab: Lab,
}

impl Testbed {
    /// Starts the agent in a new lab, with these flags besides the route.
    pub fn new(flags: &[&str]) -> Self {
        Self::in_lab(Lab::new(), flags)
    }

    /// Starts the agent in this lab, with these flags besides the route.
    pub fn in_lab(lab: Lab, flags: &[&str]) -> Self {
        let agent = Agent::start(&lab, &[&ROUTE[..], flags].concat());
        Self { agent, listener: listen(&lab, backend(8001)), lab }
    }

    /// Accepts warnings in the agent's log.
    pub fn allow_warnings(mut self) -> Self {
        self.agent = self.agent.allow_warnings();
        self
    }

    /// Opens a flow; the back end has received the ClientHello.
    #[track_caller]
    pub fn connect(&self) -> Peers {
        self.connect_with(&ClientHello::new().sni(b"a.test"))
    }

    /// Opens a flow with this ClientHello; the back end has received it.
    #[track_caller]
    pub fn connect_with(&self, hello: &ClientHello) -> Peers {
        Peers::connect(&self.lab, agent::address(), &self.listener, hello)
    }

    /// Opens a flow whose back end has answered, so that the packet engine has it.
    #[track_caller]
    pub fn connect_offloaded(&self) -> Peers {
        Peers::connect_offloaded(&self.lab, agent::address(), &self.listener)
    }
}

/// The sockets of the two peers of a flow.
#[derive(Debug)]
pub struct Peers {
    /// The client's socket.
    pub client: TcpStream,
    /// The back end's socket.
    pub backend: TcpStream,
}

impl Peers {
    /// Opens a flow through the agent at this address; the back end has received the ClientHello.
    #[track_caller]
    pub fn connect(
        lab: &Lab,
        address: SocketAddr,
        listener: &TcpListener,
        hello: &ClientHello,
    ) -> Self {
        let client = connect(lab, address);
        let hello = hello.encode();
        write(&client, &hello);
        let backend = accept(listener);
        assert_eq!(read_exact(&backend, hello.len()), hello);
        Self { client, backend }
    }

    /// Opens a flow to `a.test` whose back end has answered [`ANSWER`]: the packet engine takes over then.
    #[track_caller]
    pub fn connect_offloaded(lab: &Lab, address: SocketAddr, listener: &TcpListener) -> Self {
        let peers = Self::connect(lab, address, listener, &ClientHello::new().sni(b"a.test"));
        write(&peers.backend, ANSWER);
        assert_eq!(read_exact(&peers.client, ANSWER.len()), ANSWER);
        peers
    }

    /// Sends so many bytes in both directions at once, verifies them, and ends both directions.
    pub fn transfer_both_ways(&self, bytes: usize) {
        let Self { client, backend } = self;
        thread::scope(|scope| {
            for (from, to) in [(client, backend), (backend, client)] {
                let sending = scope.spawn(move || {
                    let hash = RandomStream::default().send(from, bytes);
                    shutdown_write(from);
                    hash
                });
                scope.spawn(move || {
                    assert_eq!(read_all_hashed(to), (bytes, sending.join().unwrap()));
                });
            }
        });
    }

    /// Ends the client's direction, and then the back end's. Neither peer may have bytes to read.
    #[track_caller]
    pub fn close(&self) {
        shutdown_write(&self.client);
        assert_eq!(read_all(&self.backend), b"");
        shutdown_write(&self.backend);
        assert_eq!(read_all(&self.client), b"");
    }
}
