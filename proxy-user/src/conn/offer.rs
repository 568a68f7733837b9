//! Shows a back end the hello and waits for its answer, so that one that hangs costs a client no
//! more than `answer_timeout`.
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
pub(super) struct Offer<'c> {
    pub(super) client: &'c TcpStream,
    pub(super) hello: usize,
    pub(super) patience: Duration,
}

impl Offer<'_> {
    /// Whether the back end said something before the time was up. An end of stream is no answer.
    pub(super) async fn show(self, backend: &mut Socket) -> io::Result<()> {
        let hello = self.read(RecvFlags::PEEK)?;
        timeout(self.patience, answer(backend, &hello)).await?
    }

    /// Takes the hello from the client: the back end that answered has it already.
    pub(super) fn take(self) -> io::Result<usize> {
        Ok(self.read(RecvFlags::empty())?.len())
    }

    /// Whether the client will not be there for any answer.
    pub(super) fn is_gone(self) -> bool {
        self.read(RecvFlags::PEEK).is_err()
    }

    fn read(self, flags: RecvFlags) -> io::Result<Vec<u8>> {
        let mut hello = vec![0; self.hello];
        match recv(self.client, &mut hello[..], flags)?.0 {
            all if all == self.hello => Ok(hello),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

async fn answer(backend: &mut Socket, hello: &[u8]) -> io::Result<()> {
    backend.write_all(hello).await?;
    loop {
        backend.ready(Interest::READABLE).await?;
        let peeked = backend
            .try_io(Interest::READABLE, || Ok(recv(&*backend, &mut [0; 1], RecvFlags::PEEK)?.0));
        match peeked {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
