//! Waits for a whole ClientHello without taking a byte of it out of the socket.
//!
//! The hello stays in the receive queue: the engine forwards it with everything behind it, and a
//! failed dial can be tried elsewhere. Waiting must not spin: the socket is readable only once
//! enough bytes are there to change the answer (`SO_RCVLOWAT`), so each look is worth it.

use std::io::{self, ErrorKind::WouldBlock};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use snisplit_common::hello::{BadHello, Hello, Reader, Step};
use snisplit_common::limits::hello_wire_bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sys::set_receive_low_water;

/// Most hellos fit: a post-quantum one has about 1,800 bytes.
const FIRST_LOOK: usize = 4096;

/// Why there is no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHello {
    /// The bytes are none, and never will be.
    Bad(BadHello),
    /// Not whole before the deadline; whether anything came at all.
    Late { anything: bool },
    /// The client closed its side in the middle of one.
    Truncated,
    /// The client closed without a byte, or reset the connection.
    Gone,
}

/// Looks until the hello is whole. `limit` bounds the handshake message in bytes, `deadline` the
/// time from the call; dripping bytes does not extend it.
pub(super) async fn hello(
    client: &TcpStream,
    limit: usize,
    deadline: Duration,
) -> Result<Box<Hello>, NoHello> {
    let mut peek = Peek {
        reader: Reader::new(limit),
        buffer: vec![0; FIRST_LOOK],
        have: 0,
        limit,
        waited: false,
    };
    let found = match timeout(deadline, peek.wait(client)).await {
        Ok(found) => found,
        Err(_elapsed) => Err(NoHello::Late { anything: peek.have > 0 }),
    };
    if peek.waited {
        // Whoever reads next wants every byte.
        set_receive_low_water(client, 1).map_err(|_| NoHello::Gone)?;
    }
    found
}

struct Peek {
    reader: Reader,
    buffer: Vec<u8>,
    /// Bytes in the buffer, all from the connection's first on.
    have: usize,
    limit: usize,
    /// The socket's low-water mark was moved.
    waited: bool,
}

impl Peek {
    async fn wait(&mut self, client: &TcpStream) -> Result<Box<Hello>, NoHello> {
        // Often the hello is there before the connection is accepted: no event is needed for it.
        let mut looked = self.look(client);
        loop {
            match looked {
                Ok(Step::Hello(hello)) => return Ok(hello),
                Ok(Step::Bad(why)) => return Err(NoHello::Bad(why)),
                Ok(Step::More { .. }) => return Err(NoHello::Gone),
                Err(error) if error.kind() != WouldBlock => {
                    return Err(NoHello::Gone);
                }
                Err(_) => {}
            }
            let ready = client.ready(Interest::READABLE).await.map_err(|_| NoHello::Gone)?;
            looked = client.try_io(Interest::READABLE, || self.look(client));
            // Behind an end of stream nothing comes any more.
            if ready.is_read_closed() && looked.as_ref().is_err_and(|e| e.kind() == WouldBlock) {
                return Err(NoHello::Truncated);
            }
        }
    }

    /// `WouldBlock` stands for "not enough yet", which makes tokio wait for the next event.
    fn look(&mut self, client: &TcpStream) -> io::Result<Step> {
        self.peek(client)?;
        match self.reader.feed(&self.buffer[..self.have]) {
            Step::More { need } if self.have > 0 => {
                set_receive_low_water(client, need)?;
                self.waited = true;
                Err(WouldBlock.into())
            }
            // Nothing at all is an end of stream.
            step @ (Step::More { .. } | Step::Hello(_) | Step::Bad(_)) => Ok(step),
        }
    }

    /// Shows all that has arrived, as far as a hello of the limit can reach.
    fn peek(&mut self, client: &TcpStream) -> io::Result<()> {
        let most = hello_wire_bytes(self.limit).max(FIRST_LOOK);
        loop {
            let room = self.buffer.len();
            self.have = rustix::io::retry_on_intr(|| {
                Ok(recv(client, &mut self.buffer[..], RecvFlags::PEEK)?.0)
            })?;
            if self.have < room || room == most {
                return Ok(());
            }
            self.buffer.resize((room * 2).min(most), 0);
        }
    }
}
