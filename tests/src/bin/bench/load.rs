//! The loads, and the back end that they are for.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::cpu_pinning;
use crate::window::{WARM_UP, Window};

/// Bytes of a small message, and of a reply.
pub(crate) const SMALL_MESSAGE_LEN: usize = 64;
/// Bytes of a large message.
pub(crate) const LARGE_MESSAGE_LEN: usize = 16 * 1024;

/// Until an agent, which gets little of two cores that are busy, is done with what began 64 flows.
const TAKEOVER_WARM_UP: Duration = Duration::from_millis(300);

/// What the client asks for behind its hello, in nine bytes of one letter.
#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// Connect, hello, 64 bytes of reply, close; so many at once.
    Connections(usize),
    /// So many bytes up, and as many down once they are there, again and again; so many at once.
    RequestResponse(usize, usize),
    /// A stream down, so many at once.
    Down(usize),
    /// A stream up, so many at once.
    Up(usize),
}

impl Load {
    pub(crate) const ALL: [Self; 11] = [
        Self::Connections(32),
        Self::RequestResponse(SMALL_MESSAGE_LEN, 1),
        Self::RequestResponse(SMALL_MESSAGE_LEN, 64),
        Self::RequestResponse(LARGE_MESSAGE_LEN, 1),
        Self::RequestResponse(LARGE_MESSAGE_LEN, 64),
        Self::Down(1),
        Self::Down(8),
        Self::Down(64),
        Self::Up(1),
        Self::Up(8),
        Self::Up(64),
    ];

    /// Those whose names contain one of these words, or all.
    pub(crate) fn matching(words: &[String]) -> impl Iterator<Item = Self> {
        let is_chosen = |name: &str| words.is_empty() || words.iter().any(|it| name.contains(it));
        Self::ALL.into_iter().filter(move |load| is_chosen(&load.name()))
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Connections(n) => format!("connections, {n} at once"),
            Self::RequestResponse(SMALL_MESSAGE_LEN, n) => format!("64 B to and fro, {n} flow(s)"),
            Self::RequestResponse(_, n) => format!("16 KB to and fro, {n} flow(s)"),
            Self::Down(n) => format!("{n} flow(s) down"),
            Self::Up(n) => format!("{n} flow(s) up"),
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Connections(_) | Self::RequestResponse(..) => "/s",
            Self::Down(_) | Self::Up(_) => "Gbit/s",
        }
    }

    /// How long its connections work before that counts.
    pub(crate) fn warm_up(self) -> Duration {
        if self.is_request_response() { TAKEOVER_WARM_UP } else { WARM_UP }
    }

    pub(crate) fn is_request_response(self) -> bool {
        matches!(self, Self::RequestResponse(..))
    }

    pub(crate) fn flows(self) -> usize {
        match self {
            Self::Connections(n) | Self::RequestResponse(_, n) | Self::Down(n) | Self::Up(n) => n,
        }
    }
}

/// Threads of the back end, each with one connection at a time. As many flows as there are in a load stand on each
/// of two ways where these take turns.
const SERVER_THREADS: usize = 2 * 64;

/// A back end that answers raw bytes behind a hello of so many bytes.
pub(crate) fn serve(listener: &TcpListener, hello_len: usize) {
    thread::scope(|scope| {
        for _ in 0..SERVER_THREADS {
            scope.spawn(|| {
                let mut buffer = vec![0; 256 * 1024];
                for stream in listener.incoming().flatten() {
                    let _peer_left = serve_connection(stream, hello_len, &mut buffer);
                }
            });
        }
    });
}

/// A peer that leaves ends the stream; that is how a measurement stops.
fn serve_connection(mut stream: TcpStream, hello_len: usize, buffer: &mut [u8]) -> io::Result<()> {
    cpu_pinning::pin_thread(1);
    stream.set_nodelay(true)?;
    stream.read_exact(&mut buffer[..hello_len + 9])?;
    let kind = buffer[hello_len];
    // As a ServerHello does: what follows begins when both have spoken.
    stream.write_all(&buffer[..SMALL_MESSAGE_LEN])?;
    match kind {
        b'e' | b'E' => {
            let message = if kind == b'e' { SMALL_MESSAGE_LEN } else { LARGE_MESSAGE_LEN };
            loop {
                stream.read_exact(&mut buffer[..message])?;
                stream.write_all(&buffer[..message])?;
            }
        }
        b'c' => Ok(()),
        b'd' => loop {
            stream.write_all(buffer)?;
        },
        _ => loop {
            if stream.read(buffer)? == 0 {
                return Ok(());
            }
        },
    }
}

/// A connection of a load that goes on, once it is answered.
pub(crate) fn open_flow(load: Load, to: SocketAddr, hello: &[u8]) -> Option<TcpStream> {
    let kind = match load {
        Load::Connections(_) => return None,
        Load::RequestResponse(SMALL_MESSAGE_LEN, _) => b'e',
        Load::RequestResponse(..) => b'E',
        Load::Down(_) => b'd',
        Load::Up(_) => b'u',
    };
    let mut stream = send_request(to, hello, kind).unwrap();
    stream.read_exact(&mut [0; SMALL_MESSAGE_LEN]).unwrap();
    Some(stream)
}

/// Works until the window's end, on that connection or on one after the other; what was done within it, and how
/// long each exchange took.
pub(crate) fn generate_load(
    load: Load,
    stream: Option<&TcpStream>,
    next: impl Fn(),
    window: &Window,
    (done, times): (&AtomicU64, &Mutex<Vec<u32>>),
) {
    let mut buffer = vec![0; 256 * 1024];
    if let (Load::RequestResponse(size, _), Some(stream)) = (load, stream) {
        let latencies = request_response(stream, &mut buffer[..size], window);
        done.fetch_add(latencies.len() as u64, Ordering::Relaxed);
        times.lock().unwrap().extend(latencies);
        return;
    }
    let mut step = || match (load, stream) {
        (Load::Down(_), Some(mut stream)) => stream.read(&mut buffer).unwrap(),
        (_, Some(mut stream)) => stream.write(&buffer).unwrap(),
        (_, None) => {
            next();
            1
        }
    };
    let mut now = Instant::now();
    while !window.is_over(now) {
        let n = step();
        now = Instant::now();
        if window.contains(now) {
            done.fetch_add(n as u64, Ordering::Relaxed);
        }
    }
}

/// Sends a message and waits for as much, again and again; how long each took, in ns. Each begins where the one
/// before ended, so that no time is left out in which this thread waits for a core.
fn request_response(mut stream: &TcpStream, message: &mut [u8], window: &Window) -> Vec<u32> {
    let (mut times, mut begun) = (Vec::new(), Instant::now());
    while !window.is_over(begun) {
        stream.write_all(message).unwrap();
        stream.read_exact(message).unwrap();
        let ended = Instant::now();
        if window.contains(ended) {
            times.push(u32::try_from((ended - begun).as_nanos()).unwrap_or(u32::MAX));
        }
        begun = ended;
    }
    times
}

/// A connection from its beginning to its end.
pub(crate) fn complete_connection(to: SocketAddr, hello: &[u8]) -> io::Result<()> {
    let mut reply = Vec::new();
    send_request(to, hello, b'c')?.read_to_end(&mut reply)?;
    if reply.len() == SMALL_MESSAGE_LEN { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A connection that has said what it wants.
pub(crate) fn send_request(to: SocketAddr, hello: &[u8], kind: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[hello, &[kind; 9]].concat())?;
    Ok(stream)
}
