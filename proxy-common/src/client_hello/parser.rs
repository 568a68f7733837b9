//! Parser of the TLS records of a ClientHello (RFC 8446 §5.1).

use super::extensions;
use super::{ClientHello, ClientHelloError};

const CONTENT_TYPE_HANDSHAKE: u8 = 22;
const HANDSHAKE_TYPE_CLIENT_HELLO: u8 = 1;
const RECORD_HEADER_LEN: usize = 5;
const HANDSHAKE_HEADER_LEN: usize = 4;
/// Largest size of a plaintext record in bytes (RFC 8446 §5.1).
const MAX_PLAINTEXT_LEN: usize = 1 << 14;

/// Number of bytes of the connection from which on records must be [`MIN_MEAN_RECORD_LEN`] long on average.
const FREE_FRAGMENTATION_LEN: usize = 4096;
/// Smallest mean length of records in bytes, without their headers. Clients that fragment a hello make records of
/// hundreds of bytes or a few small ones.
const MIN_MEAN_RECORD_LEN: usize = 64;

/// Result of parsing the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseStatus {
    /// More bytes are necessary.
    Incomplete {
        /// Smallest number of bytes, from the start of the connection, that can change the result.
        needed: usize,
    },
    /// The hello is complete.
    Complete(Box<ClientHello>),
    /// The bytes are not a hello.
    Invalid(ClientHelloError),
}

/// Incremental parser of a ClientHello.
///
/// It stores its position and no bytes. So a connection that waits for the rest of a hello takes a few words
/// of memory.
#[derive(Debug)]
pub struct ClientHelloParser {
    max_len: usize,
    /// Number of parsed bytes of the connection.
    offset: usize,
    /// Number of bytes of the present record that are not parsed.
    record_remaining: usize,
    records_read: usize,
    /// Number of parsed bytes of the message, and the first of them.
    message_read: usize,
    message_header: [u8; HANDSHAKE_HEADER_LEN],
}

impl ClientHelloParser {
    /// Makes a parser for messages of at most `max_len` bytes, without their header of 4 bytes.
    pub const fn new(max_len: usize) -> Self {
        let header = [0; HANDSHAKE_HEADER_LEN];
        Self {
            max_len,
            offset: 0,
            record_remaining: 0,
            records_read: 0,
            message_read: 0,
            message_header: header,
        }
    }

    /// Parses all bytes of the connection so far: those of the previous call, and new ones after them.
    ///
    /// Do not call it again after a result other than [`ParseStatus::Incomplete`].
    pub fn parse(&mut self, received: &[u8]) -> ParseStatus {
        self.try_parse(received).unwrap_or_else(ParseStatus::Invalid)
    }

    fn try_parse(&mut self, received: &[u8]) -> Result<ParseStatus, ClientHelloError> {
        loop {
            let unread = received.get(self.offset..).unwrap_or_default();
            if self.record_remaining == 0 {
                match self.parse_record_header(unread)? {
                    Some(len) => {
                        if self.is_fragmented_too_much() {
                            return Err(ClientHelloError::TooManyRecords);
                        }
                        self.offset += RECORD_HEADER_LEN;
                        self.record_remaining = len;
                        self.records_read += 1;
                    }
                    None => {
                        let needed = self.bytes_needed(self.message_remaining()?);
                        return Ok(ParseStatus::Incomplete { needed });
                    }
                }
                continue;
            }
            let len = unread.len().min(self.record_remaining).min(self.message_remaining()?);
            self.consume(&unread[..len]);
            match self.message_remaining()? {
                0 => {
                    let message = concat_record_payloads(&received[..self.offset]);
                    let body = message.get(HANDSHAKE_HEADER_LEN..).unwrap_or_default();
                    let client_hello = extensions::parse(body, self.offset, self.records_read)?;
                    return Ok(ParseStatus::Complete(Box::new(client_hello)));
                }
                missing if len == unread.len() => {
                    return Ok(ParseStatus::Incomplete { needed: self.bytes_needed(missing) });
                }
                _ => {}
            }
        }
    }

    /// Advances over bytes of the message.
    fn consume(&mut self, bytes: &[u8]) {
        let header_rest = self.message_header.get_mut(self.message_read..).unwrap_or_default();
        header_rest.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        self.message_read += bytes.len();
        self.offset += bytes.len();
        self.record_remaining -= bytes.len();
    }

    /// Returns the length of the record that starts here. `None`: its header is incomplete.
    fn parse_record_header(&self, header: &[u8]) -> Result<Option<usize>, ClientHelloError> {
        let unexpected_record = if self.records_read == 0 {
            ClientHelloError::NotTls
        } else {
            ClientHelloError::UnexpectedMessage
        };
        if header.first().is_some_and(|&kind| kind != CONTENT_TYPE_HANDSHAKE) {
            return Err(unexpected_record);
        }
        if header.get(1).is_some_and(|&major| major != 3) {
            return Err(unexpected_record);
        }
        let Some(&[_, _, _, high, low]) = header.first_chunk::<RECORD_HEADER_LEN>() else {
            return Ok(None);
        };
        match usize::from(u16::from_be_bytes([high, low])) {
            0 => Err(ClientHelloError::InvalidRecordLength),
            len if len > MAX_PLAINTEXT_LEN => Err(ClientHelloError::InvalidRecordLength),
            len => Ok(Some(len)),
        }
    }

    /// Returns the number of missing bytes of the message, or of its header.
    fn message_remaining(&self) -> Result<usize, ClientHelloError> {
        let [kind, high, mid, low] = self.message_header;
        if self.message_read > 0 && kind != HANDSHAKE_TYPE_CLIENT_HELLO {
            return Err(ClientHelloError::UnexpectedMessage);
        }
        if self.message_read < HANDSHAKE_HEADER_LEN {
            return Ok(HANDSHAKE_HEADER_LEN - self.message_read);
        }
        match u32::from_be_bytes([0, high, mid, low]) as usize {
            len if len > self.max_len => Err(ClientHelloError::TooLong),
            len => Ok(HANDSHAKE_HEADER_LEN + len - self.message_read),
        }
    }

    fn is_fragmented_too_much(&self) -> bool {
        self.offset >= FREE_FRAGMENTATION_LEN
            && self.message_read < self.records_read * MIN_MEAN_RECORD_LEN
    }

    /// Returns the number of bytes of the connection that the message takes at least, if the rest of it is in
    /// records of the largest size. Of a message whose length is unknown, it is the header.
    fn bytes_needed(&self, message_remaining: usize) -> usize {
        let behind_record = message_remaining.saturating_sub(self.record_remaining);
        let headers = behind_record.div_ceil(MAX_PLAINTEXT_LEN);
        // The first record has a header, if no byte of the message has arrived.
        self.offset + message_remaining + headers * RECORD_HEADER_LEN
    }
}

/// Returns the concatenated payloads of records with valid headers.
fn concat_record_payloads(records: &[u8]) -> Vec<u8> {
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
