//! Listening sockets, and accept(2) with a pause after errors.

use std::io;
use std::iter;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use rustix::io::Errno;
use snisplit_common::limits::AcceptBackoff;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::sleep;
use tracing::field::display;
use tracing::warn;

use crate::config::Limits;
use crate::telemetry::Metrics;

/// Length of the queue of connections that wait for accept(2). The kernel caps it at
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Listens on an address for TLS, with one socket for each runtime. `[::]` also accepts IPv4, unless
/// `v6_only`.
///
/// # Errors
///
/// A system call fails, for example because another process listens on the address.
pub(crate) fn listen_tls(
    address: SocketAddr,
    v6_only: bool,
    limits: &Limits,
    runtimes: &[Handle],
) -> io::Result<Vec<TcpListener>> {
    let first = new_tls_socket(address, v6_only, limits)?;
    first.bind(&address.into())?;
    // For port 0 the kernel has chosen one.
    let bound = first.local_addr()?;
    // Only after bind(2): before it, a process that listens there with SO_REUSEPORT would be no error.
    first.set_reuse_port(runtimes.len() > 1)?;
    let others = runtimes.iter().skip(1).map(|_| {
        let other = new_tls_socket(address, v6_only, limits)?;
        other.set_reuse_port(true)?;
        other.bind(&bound)?;
        Ok::<_, io::Error>(other)
    });
    let listeners = iter::once(Ok(first)).chain(others).zip(runtimes).map(|(socket, runtime)| {
        let _runtime_guard = runtime.enter();
        start_listening(socket?)
    });
    listeners.collect()
}

fn new_tls_socket(address: SocketAddr, v6_only: bool, limits: &Limits) -> io::Result<Socket> {
    let socket = new_socket(address, v6_only)?;
    // Accepted sockets inherit all of these (`sk_clone`, net/core/sock.c). The linger time of 0 makes
    // the kernel send a reset, unless `set_graceful_close` is called before close(2).
    limits.tcp_timeouts().apply(&socket)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// Listens on an address for HTTP. Accepted sockets close gracefully, so that a response arrives when
/// the agent closes first.
///
/// # Errors
///
/// A system call fails, for example because another process listens on the address.
pub(crate) fn listen_http(address: SocketAddr, v6_only: bool) -> io::Result<TcpListener> {
    let socket = new_socket(address, v6_only)?;
    socket.bind(&address.into())?;
    start_listening(socket)
}

fn new_socket(address: SocketAddr, v6_only: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only || address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn start_listening(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A listener with a growing pause after each error in a row.
pub(crate) struct Acceptor {
    listener: TcpListener,
    errors: Counter,
    backoff: AcceptBackoff,
    is_backing_off: bool,
}

impl Acceptor {
    /// Counts errors in `accept_errors`.
    pub(crate) fn new(listener: TcpListener, metrics: &Metrics) -> Self {
        Self {
            listener,
            errors: metrics.accept_errors.clone(),
            backoff: AcceptBackoff::default(),
            is_backing_off: false,
        }
    }

    /// Waits for the next connection, and returns it with the address of its client.
    pub(crate) async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(connection) => {
                    self.backoff.reset();
                    self.is_backing_off = false;
                    return connection;
                }
                Err(error) if is_connection_error(&error) => {}
                Err(error) => self.back_off(&error).await,
            }
        }
    }

    async fn back_off(&mut self, error: &io::Error) {
        self.errors.inc();
        if !self.is_backing_off {
            let address = self.listener.local_addr().ok().map(display);
            warn!(%error, address, "cannot accept connections; retrying");
        }
        self.is_backing_off = true;
        sleep(self.backoff.next_delay()).await;
    }
}

/// Whether an error of accept(2) belongs to a connection that failed while it was in the queue.
fn is_connection_error(error: &io::Error) -> bool {
    let connection_errnos =
        [Errno::CONNABORTED, Errno::NETDOWN, Errno::PROTO, Errno::HOSTUNREACH, Errno::NETUNREACH];
    error
        .raw_os_error()
        .is_some_and(|code| connection_errnos.iter().any(|errno| errno.raw_os_error() == code))
}
