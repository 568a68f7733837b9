//! Plain TCP peers of the lab: clients that send what a test says, back ends that tell what came.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use sha2::{Digest, Sha256};
use socket2::SockRef;

use crate::lab::Lab;
use crate::wait::default_timeout;

/// Connects as the client, with deadlines.
pub fn connect(lab: &Lab, to: SocketAddr) -> TcpStream {
    with_timeouts(lab.in_client(|| TcpStream::connect(to)).unwrap())
}

/// Listens as a back end.
pub fn listen(lab: &Lab, address: SocketAddr) -> TcpListener {
    lab.in_backends(|| TcpListener::bind(address)).unwrap()
}

/// Stops listening for certain: a child that another test is just forking may hold a copy of the
/// descriptor until it execs, and the kernel would go on accepting for as long.
pub fn stop_listening(listener: TcpListener) {
    SockRef::from(&listener).shutdown(Shutdown::Both).unwrap();
}

/// The next connection, with deadlines.
#[track_caller]
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let stream = crate::wait::wait_until("a connection to the back end", || listener.accept().ok());
    stream.0.set_nonblocking(false).unwrap();
    with_timeouts(stream.0)
}

/// Reads and writes fail after [`default_timeout`]; nothing is held back by Nagle.
fn with_timeouts(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(default_timeout())).unwrap();
    stream.set_write_timeout(Some(default_timeout())).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Everything up to the end of stream.
#[track_caller]
pub fn read_all(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Exactly so many bytes.
#[track_caller]
pub fn read_exact(mut stream: &TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Writes all of it.
#[track_caller]
pub fn write(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

/// Ends our direction and keeps the other open.
#[track_caller]
pub fn shutdown_write(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Closes with a reset.
pub fn close_with_reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// What a read says about the other side, after all bytes before it.
pub fn read_to_end_or_error(mut stream: &TcpStream) -> (Vec<u8>, Result<(), io::ErrorKind>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).map(drop).map_err(|error| error.kind());
    (bytes, end)
}

/// A stream of bytes that no fault can reproduce by chance, and its hash.
#[derive(Debug, Default)]
pub struct RandomStream {
    counter: u64,
    hash: Sha256,
}

impl RandomStream {
    /// Other bytes for every number.
    pub fn from_seed(number: u32) -> Self {
        Self { counter: u64::from(number) << 32, ..Self::default() }
    }

    /// The next bytes; their hash is kept.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.counter += 1;
            let word = self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            let word = (word ^ word >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        self.hash.update(&*bytes);
    }

    /// Sends so many bytes and says what they hash to.
    #[track_caller]
    pub fn send(mut self, stream: &TcpStream, total: usize) -> [u8; 32] {
        let mut buffer = vec![0; 256 * 1024];
        let mut left = total;
        while left > 0 {
            let n = left.min(buffer.len());
            self.fill(&mut buffer[..n]);
            write(stream, &buffer[..n]);
            left -= n;
        }
        self.hash.finalize().into()
    }
}

/// Reads what there is. A process that was stopped and goes on is no fault of a stream with a deadline, whose
/// read is not begun again by the kernel (signal(7)).
///
/// # Errors
///
/// The error of `read(2)` other than EINTR, a timeout among them.
pub fn read_once(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// How many bytes came up to the end of stream, and what they hash to.
#[track_caller]
pub fn read_all_hashed(stream: &TcpStream) -> (usize, [u8; 32]) {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0;
    loop {
        match read_once(stream, &mut buffer).unwrap() {
            0 => return (total, hash.finalize().into()),
            n => {
                hash.update(&buffer[..n]);
                total += n;
            }
        }
    }
}
