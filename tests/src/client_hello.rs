//! ClientHellos: recorded from real clients, and built for cases that no client sends.

use std::fs;
use std::path::PathBuf;

/// A recorded ClientHello: the first bytes that a real client sent.
#[derive(Debug)]
pub struct RecordedClientHello {
    /// Name of the client, such as `chromium`.
    pub client: String,
    /// Its bytes, for the server name `a.test`.
    pub bytes: Vec<u8>,
}

/// Reads all files of `tests/client_hellos`, whose README.md says where they come from.
pub fn recorded_client_hellos() -> Vec<RecordedClientHello> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("client_hellos");
    let mut hellos: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .map(|path| RecordedClientHello {
            client: path.file_stem().unwrap().to_string_lossy().into_owned(),
            bytes: fs::read(&path).unwrap(),
        })
        .collect();
    hellos.sort_by(|a, b| a.client.cmp(&b.client));
    hellos
}

/// Builder of a ClientHello.
#[derive(Clone, Debug)]
pub struct ClientHello {
    extensions: Vec<u8>,
}

impl ClientHello {
    /// Starts without extensions.
    pub const fn new() -> Self {
        Self { extensions: Vec::new() }
    }

    /// Adds an extension.
    pub fn extension(mut self, kind: u16, data: &[u8]) -> Self {
        self.extensions.extend(kind.to_be_bytes());
        self.extensions.extend(len16(data.len()));
        self.extensions.extend(data);
        self
    }

    /// Adds the server name extension. The name may be invalid.
    pub fn sni(self, name: &[u8]) -> Self {
        let entry = [&[0], &len16(name.len())[..], name].concat();
        self.extension(0, &[&len16(entry.len())[..], &entry].concat())
    }

    /// Adds the ALPN extension.
    pub fn alpn(self, protocols: &[&str]) -> Self {
        let list: Vec<u8> = protocols
            .iter()
            .flat_map(|name| [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat())
            .collect();
        self.extension(16, &[&len16(list.len())[..], &list].concat())
    }

    /// Pads the handshake message, without its header, to so many bytes.
    pub fn padded_to(self, size: usize) -> Self {
        let now = self.handshake_message().len() - 4;
        let mut padded = self;
        let mut left = size - now;
        // An extension has 65,535 bytes at most, so a long message needs several.
        for kind in 0xff00.. {
            let data = match left {
                0 => break,
                1..4 => panic!("{size} cannot be reached"),
                4..=32_772 => left - 4,
                _ => 32_000,
            };
            left -= data + 4;
            padded = padded.extension(kind, &vec![0; data]);
        }
        padded
    }

    /// Encodes the handshake message.
    pub fn handshake_message(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([0x5a; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend(len16(self.extensions.len()));
        body.extend(&self.extensions);
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1], &len[1..], &body].concat()
    }

    /// Encodes it in records of at most so many bytes each.
    pub fn fragmented(&self, size: usize) -> Vec<u8> {
        encode_records(&self.handshake_message(), size)
    }

    /// Encodes it in as few records as possible.
    pub fn encode(&self) -> Vec<u8> {
        self.fragmented(16_384)
    }
}

impl Default for ClientHello {
    fn default() -> Self {
        Self::new()
    }
}

/// Encodes a handshake message in records of at most so many bytes each.
pub fn encode_records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &len16(part.len())[..], part].concat();
    message.chunks(size).flat_map(record).collect()
}

fn len16(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap().to_be_bytes()
}
