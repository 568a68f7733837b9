//! The bytes that decide a connection: a PROXY header and a STARTTLS request, where the listener expects
//! them, then a complete ClientHello.
//!
//! The reader consumes the PROXY header and the STARTTLS request, and only peeks at the hello
//! (`MSG_PEEK`). The engine forwards the hello with the bytes behind it, and after a failed connect the
//! next back end gets the same bytes.
//!
//! Each parser names the number of bytes that it needs. `SO_RCVLOWAT` keeps the socket unreadable up to
//! that number, so a task wakes once. Under memory pressure the kernel ignores it (`tcp_epollin_ready`):
//! a task that finds too few bytes pauses before it waits again.

use std::io::{self, ErrorKind::WouldBlock};
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Duration;

use rustix::io::ioctl_fionread;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use snisplit_common::client_hello::{self, ClientHello, ClientHelloError, ClientHelloParser};
use snisplit_common::limits::max_client_hello_wire_len;
use snisplit_common::proxy_protocol::{self, Header, HeaderError, MAX_HEADER_LEN};
use snisplit_common::starttls;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::sys::set_rcvlowat;

/// Bytes of the first peek. A hello with a post-quantum key share has about 1,800 bytes.
const INITIAL_PEEK_LEN: usize = 4096;

/// First pause after an event with too few bytes. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_millis(320);

/// Why a connection has no acceptable hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PreambleError {
    /// The bytes are not the start of an acceptable hello.
    InvalidClientHello(ClientHelloError),
    /// The PROXY header that the listener expects is missing or invalid.
    InvalidProxyHeader(HeaderError),
    /// An address outside `proxy_protocol_from` sent a PROXY header.
    ProxyHeaderNotAllowed,
    /// The bytes were not complete at the deadline.
    Timeout {
        /// Whether the client sent at least one byte.
        received_any: bool,
    },
    /// The client closed its side after some of the bytes.
    Truncated,
    /// The client closed the connection before the first byte, or reset it.
    ClientClosed,
}

/// Reader of the preamble and the hello of one connection. One deadline bounds all reads, however slowly
/// the bytes arrive.
pub(crate) struct PreambleReader<'c> {
    client: &'c TcpStream,
    deadline: Instant,
    /// Bytes that the last peek returned, from the first unread one on. The reader does not keep them,
    /// so that a waiting connection holds no buffer.
    peeked_len: usize,
    /// Number of bytes that the parser needs, which is `SO_RCVLOWAT` of the socket if it is above 0.
    needed_len: usize,
}

impl<'c> PreambleReader<'c> {
    pub(crate) fn new(client: &'c TcpStream, timeout: Duration) -> Self {
        Self { client, deadline: Instant::now() + timeout, peeked_len: 0, needed_len: 0 }
    }

    /// Reads a PROXY header and consumes it.
    ///
    /// # Errors
    ///
    /// The header is missing or invalid, the deadline passes, or the client closes.
    pub(crate) async fn read_proxy_header(&mut self) -> Result<Header, PreambleError> {
        let found = self.read_until(MAX_HEADER_LEN, |bytes| match proxy_protocol::parse(bytes) {
            proxy_protocol::ParseStatus::Incomplete { needed } => Continue(needed),
            proxy_protocol::ParseStatus::Complete(header) => Break(Ok(header)),
            proxy_protocol::ParseStatus::Invalid(error) => {
                Break(Err(PreambleError::InvalidProxyHeader(error)))
            }
        });
        let header = found.await?;
        self.consume(header.len)?;
        Ok(header)
    }

    /// Answers PostgreSQL's requests in front of TLS. Returns whether the client sent an SSLRequest;
    /// otherwise its first bytes are TLS already.
    ///
    /// # Errors
    ///
    /// The deadline passes, or the client closes.
    pub(crate) async fn answer_starttls(&mut self) -> Result<bool, PreambleError> {
        loop {
            let request =
                self.read_until(INITIAL_PEEK_LEN, |bytes| match starttls::parse_request(bytes) {
                    starttls::StarttlsStatus::Incomplete { needed } => Continue(needed),
                    status @ (starttls::StarttlsStatus::SslRequest
                    | starttls::StarttlsStatus::GssEncRequest
                    | starttls::StarttlsStatus::Other) => Break(Ok(status)),
                });
            let request = request.await?;
            if request == starttls::StarttlsStatus::Other {
                return Ok(false);
            }
            self.consume(starttls::SSL_REQUEST.len())?;
            let is_tls = request == starttls::StarttlsStatus::SslRequest;
            let answer = if is_tls { starttls::SSL_ACCEPTED } else { starttls::SSL_REFUSED };
            // The send buffer is empty, so the byte fits.
            send(self.client, &[answer], SendFlags::NOSIGNAL)
                .map_err(|_| PreambleError::ClientClosed)?;
            if is_tls {
                return Ok(true);
            }
        }
    }

    /// Reads bytes that a peek has returned.
    fn consume(&self, len: usize) -> Result<(), PreambleError> {
        let mut consumed = vec![0; len];
        match recv(self.client, &mut consumed[..], RecvFlags::empty()) {
            Ok((bytes, _)) if bytes == len => Ok(()),
            Ok(_) | Err(_) => Err(PreambleError::ClientClosed),
        }
    }

    /// Waits for a complete hello and parses it. `limit` is the maximum length of the handshake message,
    /// in bytes.
    ///
    /// # Errors
    ///
    /// The bytes are not an acceptable hello, the deadline passes, or the client closes.
    pub(crate) async fn read_client_hello(
        &mut self,
        limit: usize,
    ) -> Result<Box<ClientHello>, PreambleError> {
        let mut parser = ClientHelloParser::new(limit);
        let max_len = max_client_hello_wire_len(limit).max(INITIAL_PEEK_LEN);
        let found = self.read_until(max_len, |bytes| match parser.parse(bytes) {
            client_hello::ParseStatus::Incomplete { needed } => Continue(needed),
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

    /// Peeks at up to `max_len` bytes until `parse` returns a result. `parse` gets all bytes that have
    /// arrived, and returns a result or the number of bytes that it needs.
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
        if std::mem::take(&mut self.needed_len) > 0 {
            // The next reader must wake for every byte.
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
        // Often the hello has arrived before accept(2), so the first peek needs no event.
        let mut result = self.peek_and_parse(max_len, &mut parse);
        let mut pause = FIRST_PAUSE;
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
            let needed_len = self.needed_len;
            result = client.try_io(Interest::READABLE, || self.peek_and_parse(max_len, &mut parse));
            // No byte follows the end of stream.
            if ready.is_read_closed() && result.as_ref().is_err_and(|e| e.kind() == WouldBlock) {
                return Err(PreambleError::Truncated);
            }
            let is_early = self.needed_len == needed_len;
            if is_early && result.as_ref().is_err_and(|e| e.kind() == WouldBlock) {
                sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }

    /// Peeks once and parses. Returns `WouldBlock` if `parse` needs more bytes: tokio then waits for the
    /// next event. Copies no byte while there are fewer than `parse` needs.
    fn peek_and_parse<T>(
        &mut self,
        max_len: usize,
        parse: &mut impl FnMut(&[u8]) -> ControlFlow<Result<T, PreambleError>, usize>,
    ) -> io::Result<Result<T, PreambleError>> {
        if self.needed_len > 0 && ioctl_fionread(self.client)? < self.needed_len as u64 {
            return Err(WouldBlock.into());
        }
        let mut stack_buf = [0; INITIAL_PEEK_LEN];
        let mut heap_buf = Vec::new();
        let bytes = self.peek_bytes(max_len, &mut stack_buf, &mut heap_buf)?;
        if bytes.is_empty() {
            return Ok(Err(PreambleError::ClientClosed));
        }
        match parse(bytes) {
            Break(found) => Ok(found),
            Continue(needed) => {
                // An unchanged value would still wake this task (`tcp_set_rcvlowat` calls `tcp_data_ready`).
                if needed != self.needed_len {
                    set_rcvlowat(self.client, needed)?;
                    self.needed_len = needed;
                }
                Err(WouldBlock.into())
            }
        }
    }

    /// Peeks at what has arrived, up to `max_len` bytes. A hello that fits into `stack_buf` needs no heap.
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
            let buf_len = buf.len();
            self.peeked_len =
                rustix::io::retry_on_intr(|| Ok(recv(self.client, &mut *buf, RecvFlags::PEEK)?.0))?;
            if self.peeked_len < buf_len || buf_len >= max_len {
                break;
            }
            heap_buf.resize((buf_len * 2).min(max_len), 0);
        }
        Ok(if heap_buf.is_empty() {
            &stack_buf[..self.peeked_len]
        } else {
            &heap_buf[..self.peeked_len]
        })
    }
}
