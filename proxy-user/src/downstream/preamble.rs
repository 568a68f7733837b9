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

use crate::sys::set_rcvlowat;

/// Most hellos fit: a post-quantum one has about 1,800 bytes.
const INITIAL_PEEK_LEN: usize = 4096;

/// Why there is no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PreambleError {
    /// The bytes are none, and never will be.
    InvalidClientHello(ClientHelloError),
    /// A PROXY header was due.
    InvalidProxyHeader(HeaderError),
    /// A PROXY header came from an address that must not send one.
    ProxyHeaderNotAllowed,
    /// Not whole before the deadline; whether anything came at all.
    Timeout { received_any: bool },
    /// The client closed its side in the middle of one.
    Truncated,
    /// The client closed without a byte, or reset the connection.
    ClientClosed,
}

/// A client that has the time up to an instant to say its first words; dripping bytes does not
/// extend it.
pub(crate) struct PreambleReader<'c> {
    client: &'c TcpStream,
    deadline: Instant,
    /// Bytes seen at the last look, all from the first unread one on. They are not kept: the next
    /// look shows them again, and who waits should hold nothing.
    peeked_len: usize,
    /// The socket's low-water mark was moved.
    rcvlowat_raised: bool,
}

impl<'c> PreambleReader<'c> {
    pub(crate) fn new(client: &'c TcpStream, timeout: Duration) -> Self {
        Self { client, deadline: Instant::now() + timeout, peeked_len: 0, rcvlowat_raised: false }
    }

    /// The PROXY header, taken out of the socket.
    pub(crate) async fn read_proxy_header(&mut self) -> Result<Header, PreambleError> {
        let found = self.read_until(MAX_HEADER_LEN, |seen| match proxy_protocol::parse(seen) {
            proxy_protocol::ParseStatus::Incomplete { needed: need } => Continue(need),
            proxy_protocol::ParseStatus::Complete(header) => Break(Ok(header)),
            proxy_protocol::ParseStatus::Invalid(error) => {
                Break(Err(PreambleError::InvalidProxyHeader(error)))
            }
        });
        let header = found.await?;
        self.consume(header.len)?;
        Ok(header)
    }

    /// What goes before TLS where PostgreSQL is spoken, answered. Whether the client asked for TLS
    /// rather than just begin.
    pub(crate) async fn answer_starttls(&mut self) -> Result<bool, PreambleError> {
        loop {
            let reading =
                self.read_until(INITIAL_PEEK_LEN, |bytes| match starttls::parse_request(bytes) {
                    starttls::StarttlsStatus::Incomplete { needed: need } => Continue(need),
                    step @ (starttls::StarttlsStatus::SslRequest
                    | starttls::StarttlsStatus::GssEncRequest
                    | starttls::StarttlsStatus::Other) => Break(Ok(step)),
                });
            let request = reading.await?;
            if request == starttls::StarttlsStatus::Other {
                return Ok(false);
            }
            self.consume(starttls::SSL_REQUEST.len())?;
            let is_tls = request == starttls::StarttlsStatus::SslRequest;
            let answer = if is_tls { starttls::SSL_ACCEPTED } else { starttls::SSL_REFUSED };
            // Nothing was sent before, so the buffer has room.
            send(self.client, &[answer], SendFlags::NOSIGNAL)
                .map_err(|_| PreambleError::ClientClosed)?;
            if is_tls {
                return Ok(true);
            }
        }
    }

    /// Takes bytes that were seen out of the socket.
    fn consume(&self, len: usize) -> Result<(), PreambleError> {
        let mut consumed = vec![0; len];
        match recv(self.client, &mut consumed[..], RecvFlags::empty()) {
            Ok((bytes, _)) if bytes == len => Ok(()),
            Ok(_) | Err(_) => Err(PreambleError::ClientClosed),
        }
    }

    /// The hello. `limit` bounds the handshake message in bytes.
    pub(crate) async fn read_client_hello(
        &mut self,
        limit: usize,
    ) -> Result<Box<ClientHello>, PreambleError> {
        let mut parser = ClientHelloParser::new(limit);
        let max_len = max_client_hello_wire_len(limit).max(INITIAL_PEEK_LEN);
        let found = self.read_until(max_len, |bytes| match parser.parse(bytes) {
            client_hello::ParseStatus::Incomplete { needed: need } => Continue(need),
            client_hello::ParseStatus::Complete(hello) => Break(Ok(hello)),
            client_hello::ParseStatus::Invalid(ClientHelloError::NotTls)
                if proxy_protocol::starts_with_signature(bytes) =>
            {
                Break(Err(PreambleError::ProxyHeaderNotAllowed))
            }
            client_hello::ParseStatus::Invalid(error) => {
                Break(Err(PreambleError::InvalidClientHello(error)))
            }
        });
        found.await
    }

    /// Looks until `judge` has found something, at up to `most` bytes. `judge` gets all bytes so
    /// far, or says how many it needs.
    async fn read_until<T>(
        &mut self,
        max_len: usize,
        parse: impl FnMut(&[u8]) -> ControlFlow<Result<T, PreambleError>, usize>,
    ) -> Result<T, PreambleError> {
        self.peeked_len = 0;
        let found = match timeout_at(self.deadline, self.peek_until(max_len, parse)).await {
            Ok(found) => found,
            Err(_elapsed) => Err(PreambleError::Timeout { received_any: self.peeked_len > 0 }),
        };
        if std::mem::take(&mut self.rcvlowat_raised) {
            // Whoever reads next wants every byte.
            set_rcvlowat(self.client, 1).map_err(|_| PreambleError::ClientClosed)?;
        }
        found
    }

    async fn peek_until<T>(
        &mut self,
        max_len: usize,
        mut parse: impl FnMut(&[u8]) -> ControlFlow<Result<T, PreambleError>, usize>,
    ) -> Result<T, PreambleError> {
        let client = self.client;
        // Often all is there before the connection is accepted: no event is needed for it.
        let mut result = self.peek_and_parse(max_len, &mut parse);
        loop {
            match result {
                Ok(found) => return found,
                Err(error) if error.kind() != WouldBlock => {
                    return Err(PreambleError::ClientClosed);
                }
                Err(_) => {}
            }
            let ready =
                client.ready(Interest::READABLE).await.map_err(|_| PreambleError::ClientClosed)?;
            result = client.try_io(Interest::READABLE, || self.peek_and_parse(max_len, &mut parse));
            // Behind an end of stream nothing comes any more.
            if ready.is_read_closed() && result.as_ref().is_err_and(|e| e.kind() == WouldBlock) {
                return Err(PreambleError::Truncated);
            }
        }
    }

    /// `WouldBlock` stands for "not enough yet", which makes tokio wait for the next event.
    fn peek_and_parse<T>(
        &mut self,
        max_len: usize,
        parse: &mut impl FnMut(&[u8]) -> ControlFlow<Result<T, PreambleError>, usize>,
    ) -> io::Result<Result<T, PreambleError>> {
        let mut stack_buf = [0; INITIAL_PEEK_LEN];
        let mut heap_buf = Vec::new();
        let bytes = self.peek_bytes(max_len, &mut stack_buf, &mut heap_buf)?;
        if bytes.is_empty() {
            return Ok(Err(PreambleError::ClientClosed));
        }
        match parse(bytes) {
            Break(found) => Ok(found),
            Continue(need) => {
                set_rcvlowat(self.client, need)?;
                self.rcvlowat_raised = true;
                Err(WouldBlock.into())
            }
        }
    }

    /// Shows all that has arrived, as far as it is of interest. Most hellos need no room on the heap.
    fn peek_bytes<'s>(
        &mut self,
        max_len: usize,
        stack_buf: &'s mut [u8; INITIAL_PEEK_LEN],
        heap_buf: &'s mut Vec<u8>,
    ) -> io::Result<&'s [u8]> {
        if self.peeked_len > 0 {
            heap_buf.resize((self.peeked_len + INITIAL_PEEK_LEN).min(max_len), 0);
        }
        loop {
            let buf = if heap_buf.is_empty() {
                &mut stack_buf[..INITIAL_PEEK_LEN.min(max_len)]
            } else {
                &mut *heap_buf
            };
            let room = buf.len();
            self.peeked_len =
                rustix::io::retry_on_intr(|| Ok(recv(self.client, &mut *buf, RecvFlags::PEEK)?.0))?;
            if self.peeked_len < room || room >= max_len {
                break;
            }
            heap_buf.resize((room * 2).min(max_len), 0);
        }
        Ok(if heap_buf.is_empty() {
            &stack_buf[..self.peeked_len]
        } else {
            &heap_buf[..self.peeked_len]
        })
    }
}
