//! Opens listeners and accepts, gently when the descriptor table is full.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use snisplit_common::limits::Backoff;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::{Shared, serve};
use crate::config::Limits;

/// Connections that may wait for accept(2); net.core.somaxconn caps it.
const BACKLOG: i32 = 4096;

/// Binds an address for TLS. `[::]` takes IPv4 too, unless `v6_only`.
pub(crate) fn listen(
    address: SocketAddr,
    v6_only: bool,
    limits: &Limits,
) -> io::Result<TcpListener> {
    let socket = socket(address, v6_only)?;
    // Accepted sockets inherit all of these (sk_clone, net/core/sock.c). A socket that nobody ended
    // in order says so with a reset.
    limits.upkeep().apply(&socket)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    begin(socket, address)
}

/// Binds an address for HTTP, whose answers must arrive whoever closes first.
pub(crate) fn listen_plainly(address: SocketAddr, v6_only: bool) -> io::Result<TcpListener> {
    begin(socket(address, v6_only)?, address)
}

fn socket(address: SocketAddr, v6_only: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only || address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn begin(socket: Socket, address: SocketAddr) -> io::Result<TcpListener> {
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until it is dropped.
pub(crate) async fn run(
    socket: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
) {
    let mut backoff = Backoff::default();
    let mut starving = false;
    loop {
        match socket.accept().await {
            Ok((client, from)) => {
                backoff.succeed();
                starving = false;
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                let around = (Arc::clone(&shared), tasks.clone());
                tasks.spawn(serve(client, from, address, around));
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                shared.observers.metrics.accept_errors.inc();
                if !starving {
                    warn!(%error, %address, "cannot accept; waiting for room");
                }
                starving = true;
                tokio::time::sleep(backoff.fail()).await;
            }
        }
    }
}

/// accept(2) also reports what happened to a connection that was still in the queue.
fn is_the_clients(error: &io::Error) -> bool {
    let of_a_connection =
        [Errno::CONNABORTED, Errno::NETDOWN, Errno::PROTO, Errno::HOSTUNREACH, Errno::NETUNREACH];
    error
        .raw_os_error()
        .is_some_and(|code| of_a_connection.iter().any(|errno| errno.raw_os_error() == code))
}
