//! Sockets of a flow that the kernel forwards, and their state.

use std::io;
use std::net::TcpStream;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::engine::Peer;
use crate::sys;

/// A socket that registers with tokio only once a direction detaches. Until then tokio would wake its
/// task for every packet.
#[derive(Debug)]
pub(super) struct LazySocket {
    socket: Arc<TcpStream>,
    /// Set by the first direction that detaches, and shared with the other one.
    registered: OnceLock<AsyncFd<Arc<TcpStream>>>,
}

impl LazySocket {
    /// Deregisters a socket from tokio.
    pub(super) fn new(socket: tokio::net::TcpStream) -> io::Result<Self> {
        Ok(Self { socket: Arc::new(socket.into_std()?), registered: OnceLock::new() })
    }

    /// Registers the socket with the runtime of the calling task, if it is not registered.
    pub(super) fn register(&self) -> io::Result<&AsyncFd<Arc<TcpStream>>> {
        if self.registered.get().is_none() {
            let interest = Interest::READABLE | Interest::WRITABLE;
            // Both directions run in one task, so no other one sets it in between.
            let _not_set = self.registered.set(sys::async_fd(Arc::clone(&self.socket), interest)?);
        }
        self.registered.get().ok_or_else(|| io::ErrorKind::Other.into())
    }
}

impl Deref for LazySocket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.socket
    }
}

impl AsFd for LazySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketState {
    Open,
    /// The peer has sent a FIN.
    PeerClosed,
    /// The connection has an error, such as a reset.
    Failed,
}

/// Reads the state of a connection, and leaves its error (`SO_ERROR`) in place.
pub(super) fn socket_state(socket: &impl AsFd) -> io::Result<SocketState> {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&no_wait)))?;
    let revents = polled[0].revents();
    Ok(if revents.contains(PollFlags::ERR) {
        SocketState::Failed
    } else if revents.intersects(PollFlags::RDHUP | PollFlags::HUP) {
        SocketState::PeerClosed
    } else {
        SocketState::Open
    })
}

/// The peer whose connection has failed, if one has.
///
/// The kernel removes the socket of a failed connection from the maps (`sock_map_unhash`,
/// net/core/sock_map.c). The program then poisons the direction to it, which is not a local error.
pub(super) fn failed_peer(client: &impl AsFd, backend: &impl AsFd) -> Option<Peer> {
    let has_failed = |state: io::Result<SocketState>| state.is_ok_and(|s| s == SocketState::Failed);
    if has_failed(socket_state(client)) {
        Some(Peer::Client)
    } else {
        has_failed(socket_state(backend)).then_some(Peer::Backend)
    }
}
