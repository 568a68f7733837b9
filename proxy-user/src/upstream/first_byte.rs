//! `first_byte_timeout`: sends a back end the hello and waits for the first byte of its answer. A back end
//! that hangs delays a client by no more than that time.
//!
//! The hello stays unread in the client's socket until a back end has answered, so that the next one can
//! get it. Early data behind the hello must not reach two back ends (RFC 8446 §8), so none gets it before
//! its answer.

use std::io::{self, ErrorKind};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::engine::Socket;

/// The unread hello of a client, and the time that a back end has to answer it.
#[derive(Clone, Copy)]
pub(crate) struct HelloProbe<'c> {
    pub(crate) client: &'c TcpStream,
    /// Bytes of the hello on the wire.
    pub(crate) hello_len: usize,
    pub(crate) timeout: Duration,
}

impl HelloProbe<'_> {
    /// Sends the hello to a back end and waits for the first byte of its answer.
    ///
    /// # Errors
    ///
    /// The back end sends no byte in time or closes its side, or the client has closed.
    pub(crate) async fn send_and_wait(self, backend: &mut Socket) -> io::Result<()> {
        let client_hello = self.read_hello(RecvFlags::PEEK)?;
        timeout(self.timeout, send_and_await_first_byte(backend, &client_hello)).await?
    }

    /// Reads the hello from the client's socket, because a back end has it. Returns its length in bytes.
    ///
    /// # Errors
    ///
    /// The client has reset the connection.
    pub(crate) fn consume(self) -> io::Result<usize> {
        Ok(self.read_hello(RecvFlags::empty())?.len())
    }

    /// Whether the client's connection has failed.
    pub(crate) fn client_closed(self) -> bool {
        self.read_hello(RecvFlags::PEEK).is_err()
    }

    fn read_hello(self, flags: RecvFlags) -> io::Result<Vec<u8>> {
        let mut hello = vec![0; self.hello_len];
        match recv(self.client, &mut hello[..], flags)?.0 {
            all if all == self.hello_len => Ok(hello),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

async fn send_and_await_first_byte(backend: &mut Socket, client_hello: &[u8]) -> io::Result<()> {
    backend.write_all(client_hello).await?;
    loop {
        backend.ready(Interest::READABLE).await?;
        let result = backend
            .try_io(Interest::READABLE, || Ok(recv(&*backend, &mut [0; 1], RecvFlags::PEEK)?.0));
        match result {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
