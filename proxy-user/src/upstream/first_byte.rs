//! Shows a back end the hello and waits for its answer, so that one that hangs costs a client no
//! more than `first_byte_timeout`.
//!
//! The client's own hello stays unread until a back end has answered it, so the next one can still
//! have it. Early data behind it is shown to none before that: it must not arrive twice
//! (RFC 8446 §8).

use std::io::{self, ErrorKind};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::engine::Socket;

/// What to show: so many bytes of the client, at its hello.
#[derive(Clone, Copy)]
pub(crate) struct HelloProbe<'c> {
    pub(crate) client: &'c TcpStream,
    pub(crate) hello_len: usize,
    pub(crate) timeout: Duration,
}

impl HelloProbe<'_> {
    /// Whether the back end said something before the time was up. An end of stream is no answer.
    pub(crate) async fn send_and_wait(self, backend: &mut Socket) -> io::Result<()> {
        let client_hello = self.read_hello(RecvFlags::PEEK)?;
        timeout(self.timeout, send_and_await_first_byte(backend, &client_hello)).await?
    }

    /// Takes the hello from the client: the back end that answered has it already.
    pub(crate) fn consume(self) -> io::Result<usize> {
        Ok(self.read_hello(RecvFlags::empty())?.len())
    }

    /// Whether the client will not be there for any answer.
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
