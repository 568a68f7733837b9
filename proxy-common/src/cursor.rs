//! Cursor over untrusted bytes, which never reads after their end and never panics.
//!
//! Each read returns `None` if there are too few bytes. A TLS vector (RFC 8446 §3.4) is a cursor of its own,
//! so a parser of its content cannot read outside it.

/// Unread rest of a byte string.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Returns the unread bytes.
    pub const fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Whether no unread bytes are left.
    pub const fn is_empty(self) -> bool {
        self.rest.is_empty()
    }

    /// Reads `n` bytes.
    pub fn read_bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(head)
    }

    /// Reads one byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.read_bytes(1).map(|b| b[0])
    }

    /// Reads two bytes in network byte order.
    pub fn u16(&mut self) -> Option<u16> {
        self.read_bytes(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    /// Reads a vector with a length of one byte.
    pub fn vec8(&mut self) -> Option<Self> {
        let n = self.u8()?;
        self.read_bytes(n.into()).map(Self::new)
    }

    /// Reads a vector with a length of two bytes.
    pub fn vec16(&mut self) -> Option<Self> {
        let n = self.u16()?;
        self.read_bytes(n.into()).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_ends_where_its_length_says() {
        let mut outer = Cursor::new(&[2, 0xa, 0xb, 0, 1, 0xc]);
        let mut inner = outer.vec8().unwrap();
        assert_eq!(inner.u16(), Some(0x0a0b));
        assert_eq!(inner.u8(), None);
        assert_eq!(outer.vec16().unwrap().rest(), [0xc]);
        assert!(outer.is_empty());
    }

    #[test]
    fn a_short_read_takes_nothing() {
        let mut cursor = Cursor::new(&[0, 9, 1]);
        assert!(cursor.clone().vec16().is_none());
        assert_eq!(cursor.read_bytes(4), None);
        assert_eq!(cursor.rest(), [0, 9, 1]);
    }
}
