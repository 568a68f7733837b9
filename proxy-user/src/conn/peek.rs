//! Waits for what a client says first: a PROXY header where one is due, a request for TLS where the
//! protocol has one, then a whole ClientHello.
//!
//! The hello is looked at without taking a byte of it out of the socket: the engine forwards it with
//! everything behind it, and a failed dial can be tried elsewhere. Waiting must not spin: the socket
//! is readable only once enough bytes are there to change the answer (`SO_RCVLOWAT`), so each look
//! is worth it.

use std::io::{self, ErrorKind::WouldBlock};
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use snisplit_common::client_hello::{self, ClientHello, ClientHelloError, ClientHelloParser};
use snisplit_common::limits::max_client_hello_wire_len;
use snisplit_common::proxy_protocol::{self, Header, HeaderError, MAX_HEADER_LEN};
use snisplit_common::starttls;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::sys::set_receive_low_water;

/// Most hellos fit: a post-quantum one has about 1,800 bytes.
const FIRST_LOOK: usize = 4096;

/// Why there is no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHello {
    /// The bytes are none, and never will be.
    Bad(ClientHelloError),
    /// A PROXY header was due.
    BadHeader(HeaderError),
    /// A PROXY header came from an address that must not send one.
    HeaderNotAllowed,
    /// Not whole before the deadline; whether anything came at all.
    Late { anything: bool },
    /// The client closed its side in the middle of one.
    Truncated,
    /// The client closed without a byte, or reset the connection.
    Gone,
}

/// A client that has the time up to an instant to say its first words; dripping bytes does not
/// extend it.
pub(super) struct Peek<'c> {
    client: &'c TcpStream,
    deadline: Instant,
    /// Bytes seen at the last look, all from the first unread one on. They are not kept: the next
    /// look shows them again, and who waits should hold nothing.
    have: usize,
    /// The socket's low-water mark was moved.
    waited: bool,
}

impl<'c> Peek<'c> {
    pub(super) fn new(client: &'c TcpStream, patience: Duration) -> Self {
        Self { client, deadline: Instant::now() + patience, have: 0, waited: false }
    }

    /// The PROXY header, taken out of the socket.
    pub(super) async fn header(&mut self) -> Result<Header, NoHello> {
        let found = self.until(MAX_HEADER_LEN, |seen| match proxy_protocol::parse(seen) {
            proxy_protocol::ParseStatus::Incomplete { needed: need } => Continue(need),
            proxy_protocol::ParseStatus::Complete(header) => Break(Ok(header)),
            proxy_protocol::ParseStatus::Invalid(why) => Break(Err(NoHello::BadHeader(why))),
        });
        let header = found.await?;
        self.take(header.len)?;
        Ok(header)
    }

    /// What goes before TLS where PostgreSQL is spoken, answered. Whether the client asked for TLS
    /// rather than just begin.
    pub(super) async fn starttls(&mut self) -> Result<bool, NoHello> {
        loop {
            let asked = self.until(FIRST_LOOK, |seen| match starttls::parse_request(seen) {
                starttls::StarttlsStatus::Incomplete { needed: need } => Continue(need),
                step @ (starttls::StarttlsStatus::SslRequest
                | starttls::StarttlsStatus::GssEncRequest
                | starttls::StarttlsStatus::Other) => Break(Ok(step)),
            });
            let asked = asked.await?;
            if asked == starttls::StarttlsStatus::Other {
                return Ok(false);
            }
            self.take(starttls::SSL_REQUEST.len())?;
            let is_tls = asked == starttls::StarttlsStatus::SslRequest;
            let answer = if is_tls { starttls::SSL_ACCEPTED } else { starttls::SSL_REFUSED };
            // Nothing was sent before, so the buffer has room.
            send(self.client, &[answer], SendFlags::NOSIGNAL).map_err(|_| NoHello::Gone)?;
            if is_tls {
                return Ok(true);
            }
        }
    }

    /// Takes bytes that were seen out of the socket.
    fn take(&self, len: usize) -> Result<(), NoHello> {
        let mut taken = vec![0; len];
        match recv(self.client, &mut taken[..], RecvFlags::empty()) {
            Ok((bytes, _)) if bytes == len => Ok(()),
            Ok(_) | Err(_) => Err(NoHello::Gone),
        }
    }

    /// The hello. `limit` bounds the handshake message in bytes.
    pub(super) async fn hello(&mut self, limit: usize) -> Result<Box<ClientHello>, NoHello> {
        let mut reader = ClientHelloParser::new(limit);
        let most = max_client_hello_wire_len(limit).max(FIRST_LOOK);
        let found = self.until(most, |seen| match reader.parse(seen) {
            client_hello::ParseStatus::Incomplete { needed: need } => Continue(need),
            client_hello::ParseStatus::Complete(hello) => Break(Ok(hello)),
            client_hello::ParseStatus::Invalid(ClientHelloError::NotTls)
                if proxy_protocol::starts_with_signature(seen) =>
            {
                Break(Err(NoHello::HeaderNotAllowed))
            }
            client_hello::ParseStatus::Invalid(why) => Break(Err(NoHello::Bad(why))),
        });
        found.await
    }

    /// Looks until `judge` has found something, at up to `most` bytes. `judge` gets all bytes so
    /// far, or says how many it needs.
    async fn until<T>(
        &mut self,
        most: usize,
        judge: impl FnMut(&[u8]) -> ControlFlow<Result<T, NoHello>, usize>,
    ) -> Result<T, NoHello> {
        self.have = 0;
        let found = match timeout_at(self.deadline, self.wait(most, judge)).await {
            Ok(found) => found,
            Err(_elapsed) => Err(NoHello::Late { anything: self.have > 0 }),
        };
        if std::mem::take(&mut self.waited) {
            // Whoever reads next wants every byte.
            set_receive_low_water(self.client, 1).map_err(|_| NoHello::Gone)?;
        }
        found
    }

    async fn wait<T>(
        &mut self,
        most: usize,
        mut judge: impl FnMut(&[u8]) -> ControlFlow<Result<T, NoHello>, usize>,
    ) -> Result<T, NoHello> {
        let client = self.client;
        // Often all is there before the connection is accepted: no event is needed for it.
        let mut looked = self.look(most, &mut judge);
        loop {
            match looked {
                Ok(found) => return found,
                Err(error) if error.kind() != WouldBlock => return Err(NoHello::Gone),
                Err(_) => {}
            }
            let ready = client.ready(Interest::READABLE).await.map_err(|_| NoHello::Gone)?;
            looked = client.try_io(Interest::READABLE, || self.look(most, &mut judge));
            // Behind an end of stream nothing comes any more.
            if ready.is_read_closed() && looked.as_ref().is_err_and(|e| e.kind() == WouldBlock) {
                return Err(NoHello::Truncated);
            }
        }
    }

    /// `WouldBlock` stands for "not enough yet", which makes tokio wait for the next event.
    fn look<T>(
        &mut self,
        most: usize,
        judge: &mut impl FnMut(&[u8]) -> ControlFlow<Result<T, NoHello>, usize>,
    ) -> io::Result<Result<T, NoHello>> {
        let mut few = [0; FIRST_LOOK];
        let mut many = Vec::new();
        let seen = self.peek(most, &mut few, &mut many)?;
        if seen.is_empty() {
            return Ok(Err(NoHello::Gone));
        }
        match judge(seen) {
            Break(found) => Ok(found),
            Continue(need) => {
                set_receive_low_water(self.client, need)?;
                self.waited = true;
                Err(WouldBlock.into())
            }
        }
    }

    /// Shows all that has arrived, as far as it is of interest. Most hellos need no room on the heap.
    fn peek<'s>(
        &mut self,
        most: usize,
        few: &'s mut [u8; FIRST_LOOK],
        many: &'s mut Vec<u8>,
    ) -> io::Result<&'s [u8]> {
        if self.have > 0 {
            many.resize((self.have + FIRST_LOOK).min(most), 0);
        }
        loop {
            let seen = if many.is_empty() { &mut few[..FIRST_LOOK.min(most)] } else { &mut *many };
            let room = seen.len();
            self.have =
                rustix::io::retry_on_intr(
                    || Ok(recv(self.client, &mut *seen, RecvFlags::PEEK)?.0),
                )?;
            if self.have < room || room >= most {
                break;
            }
            many.resize((room * 2).min(most), 0);
        }
        Ok(if many.is_empty() { &few[..self.have] } else { &many[..self.have] })
    }
}
