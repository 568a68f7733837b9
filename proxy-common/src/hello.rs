//! The first thing a TLS client says, and the few facts we want from it.
//!
//! Sans I/O: [`Reader::feed`] gets all bytes that have arrived so far and says when it knows
//! enough. A hello is decided only when it is whole, so how it was cut into TCP segments or TLS
//! records can never change a decision (CVE-2026-32305 was that). RFC 8446 §4.1.2 and §5.1.

use crate::alert::Alert;
use crate::name::{BadName, ServerName};

mod extensions;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
/// The longest plaintext record, RFC 8446 §5.1.
const RECORD_MAX: usize = 1 << 14;

/// What a ClientHello says, as far as it matters to a splitter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The server name extension (RFC 6066 §3).
    pub sni: Sni,
    /// The protocols offered, in the client's order (RFC 7301).
    pub alpn: Vec<Vec<u8>>,
    /// The versions offered: the extension of RFC 8446 §4.2.1, else the one legacy version.
    pub versions: Vec<u16>,
    /// Whether data may stand right behind the hello (0-RTT, RFC 8446 §4.2.10).
    pub early_data: bool,
    /// Whether an encrypted inner hello is offered (RFC 9849); GREASE looks the same.
    pub ech: bool,
    /// Bytes of the connection up to the hello's last one.
    pub wire_len: usize,
    /// TLS records that these bytes stand in.
    pub records: usize,
}

/// The name a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sni {
    /// No extension.
    Absent,
    /// A name that could be somebody's.
    Name(ServerName),
    /// An extension whose name is none, and why.
    Invalid(BadName),
}

impl Hello {
    /// Whether this is an ACME validation: that protocol and no other (RFC 8737 §3).
    pub fn is_acme_validation(&self) -> bool {
        matches!(self.alpn.as_slice(), [only] if only == b"acme-tls/1")
    }
}

/// Why bytes are no ClientHello that we could pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadHello {
    /// The first bytes are no TLS handshake record.
    NotTls,
    /// A TLS record of another type, or another handshake message.
    Unexpected,
    /// A record that claims more than 2^14 bytes, or none.
    Record,
    /// A message longer than the limit.
    TooLong,
    /// Lengths inside the message that do not add up.
    Malformed,
    /// An extension that stands twice, which RFC 8446 §4.2 forbids.
    Duplicate,
}

impl BadHello {
    /// The alert that answers it.
    pub const fn alert(self) -> Alert {
        match self {
            Self::NotTls | Self::Unexpected => Alert::UnexpectedMessage,
            Self::Record => Alert::RecordOverflow,
            Self::TooLong | Self::Malformed => Alert::DecodeError,
            Self::Duplicate => Alert::IllegalParameter,
        }
    }

    /// A short word for counters and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::Unexpected => "unexpected_message",
            Self::Record => "bad_record",
            Self::TooLong => "hello_too_long",
            Self::Malformed => "malformed_hello",
            Self::Duplicate => "duplicate_extension",
        }
    }
}

/// What is known after some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Not enough: no fewer than `need` bytes from the connection's start can change that.
    More {
        /// Bytes, counted from the connection's first one.
        need: usize,
    },
    /// The hello is whole.
    Hello(Box<Hello>),
    /// It never will be.
    Bad(BadHello),
}

/// Takes the records off a hello, as far as it has come.
///
/// Keeps where it is and nothing of the bytes: whoever waits for the rest of a hello waits in a few
/// words of memory.
#[derive(Debug)]
pub struct Reader {
    limit: usize,
    /// Bytes of the connection that have been looked at.
    at: usize,
    /// Bytes of the current record that have not.
    record_left: usize,
    records: usize,
    /// Bytes of the message that have been looked at, and the first of them.
    have: usize,
    header: [u8; MESSAGE_HEADER],
}

impl Reader {
    /// A reader for messages of at most `limit` bytes (without their header of 4).
    pub const fn new(limit: usize) -> Self {
        let header = [0; MESSAGE_HEADER];
        Self { limit, at: 0, record_left: 0, records: 0, have: 0, header }
    }

    /// Looks at all bytes that the connection has brought so far: the ones of the last call, then
    /// any new ones. A hello or a fault is the last answer; there is nothing to feed after it.
    pub fn feed(&mut self, seen: &[u8]) -> Step {
        self.advance(seen).unwrap_or_else(Step::Bad)
    }

    fn advance(&mut self, seen: &[u8]) -> Result<Step, BadHello> {
        loop {
            let fresh = seen.get(self.at..).unwrap_or_default();
            if self.record_left == 0 {
                match self.record_header(fresh)? {
                    Some(len) => {
                        self.at += RECORD_HEADER;
                        self.record_left = len;
                        self.records += 1;
                    }
                    None => return Ok(Step::More { need: self.at + RECORD_HEADER }),
                }
                continue;
            }
            let n = fresh.len().min(self.record_left).min(self.missing()?);
            self.pass(&fresh[..n]);
            match self.missing()? {
                0 => {
                    let message = message(&seen[..self.at]);
                    let body = message.get(MESSAGE_HEADER..).unwrap_or_default();
                    let hello = extensions::parse(body, self.at, self.records)?;
                    return Ok(Step::Hello(Box::new(hello)));
                }
                missing if n == fresh.len() => return Ok(Step::More { need: self.need(missing) }),
                _ => {}
            }
        }
    }

    /// Goes over bytes of the message.
    fn pass(&mut self, bytes: &[u8]) {
        let unknown = self.header.get_mut(self.have..).unwrap_or_default();
        unknown.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        self.have += bytes.len();
        self.at += bytes.len();
        self.record_left -= bytes.len();
    }

    /// The length of the record that starts here, or `None` while its header has not come.
    fn record_header(&self, header: &[u8]) -> Result<Option<usize>, BadHello> {
        let odd = if self.records == 0 { BadHello::NotTls } else { BadHello::Unexpected };
        if header.first().is_some_and(|&kind| kind != HANDSHAKE) {
            return Err(odd);
        }
        if header.get(1).is_some_and(|&major| major != 3) {
            return Err(odd);
        }
        let Some(&[_, _, _, high, low]) = header.first_chunk::<RECORD_HEADER>() else {
            return Ok(None);
        };
        match usize::from(u16::from_be_bytes([high, low])) {
            0 => Err(BadHello::Record),
            len if len > RECORD_MAX => Err(BadHello::Record),
            len => Ok(Some(len)),
        }
    }

    /// Bytes of the message that have not come, as far as its own header tells.
    fn missing(&self) -> Result<usize, BadHello> {
        let [kind, high, mid, low] = self.header;
        if self.have > 0 && kind != CLIENT_HELLO {
            return Err(BadHello::Unexpected);
        }
        if self.have < MESSAGE_HEADER {
            return Ok(MESSAGE_HEADER - self.have);
        }
        match u32::from_be_bytes([0, high, mid, low]) as usize {
            len if len > self.limit => Err(BadHello::TooLong),
            len => Ok(MESSAGE_HEADER + len - self.have),
        }
    }

    fn need(&self, missing: usize) -> usize {
        match self.record_left {
            0 => self.at + RECORD_HEADER,
            left if left < missing => self.at + left + RECORD_HEADER,
            _ => self.at + missing,
        }
    }
}

/// What stands in the records, whose headers have been found right.
fn message(records: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(records.len());
    let mut rest = records;
    while let [_, _, _, high, low, behind @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (record, next) = behind.split_at(len);
        message.extend_from_slice(record);
        rest = next;
    }
    message
}

#[cfg(test)]
mod tests;
