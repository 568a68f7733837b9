//! The loads, and the back end that serves them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::cpu_pinning;
use crate::window::{WARM_UP, Window};

/// Bytes of a small message, and of the first response.
pub(crate) const SMALL_MESSAGE_LEN: usize = 64;
/// Bytes of a large message.
pub(crate) const LARGE_MESSAGE_LEN: usize = 16 * 1024;

/// Time in which an agent finishes the takeover of 64 flows. It gets little of two busy cores.
const TAKEOVER_WARM_UP: Duration = Duration::from_millis(300);

/// What connections do. The client requests it by nine equal letters behind its ClientHello.
#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// Connect, ClientHello, 64 bytes of response, close; so many at the same time.
    Connections(usize),
    /// A request of so many bytes and a response of as many, again and again (TCP_RR of netperf); so many flows.
    RequestResponse(usize, usize),
    /// A stream down on so many flows.
    Down(usize),
    /// A stream up on so many flows.
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

    /// Loads whose names contain one of these parts; all if there are no parts.
    pub(crate) fn matching(parts: &[String]) -> impl Iterator<Item = Self> {
        let is_selected =
            |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part));
        Self::ALL.into_iter().filter(move |load| is_selected(&load.name()))
    }

    /// Name in the tables, such as `64 B request/response, 1 flow`.
    pub(crate) fn name(self) -> String {
        let flows =
            if self.flows() == 1 { "1 flow".into() } else { format!("{} flows", self.flows()) };
        match self {
            Self::Connections(n) => format!("connections, {n} at once"),
            Self::RequestResponse(SMALL_MESSAGE_LEN, _) => {
                format!("64 B request/response, {flows}")
            }
            Self::RequestResponse(..) => format!("16 KB request/response, {flows}"),
            Self::Down(_) => format!("{flows} down"),
            Self::Up(_) => format!("{flows} up"),
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Connections(_) | Self::RequestResponse(..) => "/s",
            Self::Down(_) | Self::Up(_) => "Gbit/s",
        }
    }

    /// Time at the start of a measurement that does not count.
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

/// Threads of the back end, each with one connection at a time. A comparison with a direct link has the flows of a load
/// twice.
const SERVER_THREADS: usize = 2 * 64;

/// Runs the back end. `hello_len` is the length of the ClientHello in bytes.
pub(crate) fn serve(listener: &TcpListener, hello_len: usize) {
    thread::scope(|scope| {
        for _ in 0..SERVER_THREADS {
            scope.spawn(|| {
                let mut buffer = vec![0; 256 * 1024];
                for stream in listener.incoming().flatten() {
                    let _client_closed = serve_connection(stream, hello_len, &mut buffer);
                }
            });
        }
    });
}

/// Serves one connection until the client closes it at the end of a measurement.
fn serve_connection(mut stream: TcpStream, hello_len: usize, buffer: &mut [u8]) -> io::Result<()> {
    cpu_pinning::pin_thread(1);
    stream.set_nodelay(true)?;
    stream.read_exact(&mut buffer[..hello_len + 9])?;
    let kind = buffer[hello_len];
    // As a ServerHello, it comes before anything else.
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

/// Where a load connects to.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) hello: &'a [u8],
}

/// Opens a connection and reads the first response. [`Load::Connections`] has no such connection.
pub(crate) fn open_flow(load: Load, target: Target<'_>) -> Option<TcpStream> {
    let kind = match load {
        Load::Connections(_) => return None,
        Load::RequestResponse(SMALL_MESSAGE_LEN, _) => b'e',
        Load::RequestResponse(..) => b'E',
        Load::Down(_) => b'd',
        Load::Up(_) => b'u',
    };
    let mut stream = send_request(target, kind).unwrap();
    stream.read_exact(&mut [0; SMALL_MESSAGE_LEN]).unwrap();
    Some(stream)
}

/// What the threads of a load have done within its window.
#[derive(Default)]
pub(crate) struct LoadResults {
    /// Connections, requests with their responses, or bytes.
    pub(crate) completed: AtomicU64,
    /// Time of each request and its response, in ns.
    pub(crate) latencies_ns: Mutex<Vec<u32>>,
}

/// Generates load until the window ends: on `stream`, or by `connect`, which opens and closes a connection.
pub(crate) fn generate_load(
    load: Load,
    stream: Option<&TcpStream>,
    connect: impl Fn(),
    window: &Window,
    results: &LoadResults,
) {
    let mut buffer = vec![0; 256 * 1024];
    if let (Load::RequestResponse(size, _), Some(stream)) = (load, stream) {
        let latencies = request_response(stream, &mut buffer[..size], window);
        results.completed.fetch_add(latencies.len() as u64, Ordering::Relaxed);
        results.latencies_ns.lock().unwrap().extend(latencies);
        return;
    }
    let mut step = || match (load, stream) {
        (Load::Down(_), Some(mut stream)) => stream.read(&mut buffer).unwrap(),
        (_, Some(mut stream)) => stream.write(&buffer).unwrap(),
        (_, None) => {
            connect();
            1
        }
    };
    let mut now = Instant::now();
    while !window.is_over(now) {
        let n = step();
        now = Instant::now();
        if window.contains(now) {
            results.completed.fetch_add(n as u64, Ordering::Relaxed);
        }
    }
}

/// Sends requests and receives responses until the window ends. Returns the time of each pair, in ns.
///
/// A pair begins when the one before ended, so that the time counts in which this thread waits for a core.
fn request_response(mut stream: &TcpStream, message: &mut [u8], window: &Window) -> Vec<u32> {
    let (mut latencies, mut started) = (Vec::new(), Instant::now());
    while !window.is_over(started) {
        stream.write_all(message).unwrap();
        stream.read_exact(message).unwrap();
        let ended = Instant::now();
        if window.contains(ended) {
            latencies.push(u32::try_from((ended - started).as_nanos()).unwrap_or(u32::MAX));
        }
        started = ended;
    }
    latencies
}

/// Opens a connection, reads the response and closes it.
pub(crate) fn complete_connection(target: Target<'_>) -> io::Result<()> {
    let mut reply = Vec::new();
    send_request(target, b'c')?.read_to_end(&mut reply)?;
    if reply.len() == SMALL_MESSAGE_LEN { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Opens a connection and sends the ClientHello and the letters of a load.
pub(crate) fn send_request(target: Target<'_>, kind: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(target.address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[target.hello, &[kind; 9]].concat())?;
    Ok(stream)
}
