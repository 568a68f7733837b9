//! Sockets that the kernel forwards, and what they have come to.

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

/// A socket that tokio does not watch until it must: it would wake for every packet.
#[derive(Debug)]
pub(super) struct LazySocket {
    socket: Arc<TcpStream>,
    /// Both directions of a flow may need it.
    registered: OnceLock<AsyncFd<Arc<TcpStream>>>,
}

impl LazySocket {
    /// Takes a socket out of tokio's sight.
    pub(super) fn new(socket: tokio::net::TcpStream) -> io::Result<Self> {
        Ok(Self { socket: Arc::new(socket.into_std()?), registered: OnceLock::new() })
    }

    pub(super) fn register(&self) -> io::Result<&AsyncFd<Arc<TcpStream>>> {
        if self.registered.get().is_none() {
            let interest = Interest::READABLE | Interest::WRITABLE;
            // Both directions run in one task, so nobody else sets it in between.
            let _ours = self.registered.set(sys::async_fd(Arc::clone(&self.socket), interest)?);
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

/// What a socket has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketState {
    Open,
    /// Its peer sends no more.
    PeerClosed,
    Failed,
}

/// Asks without taking the error off the socket.
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
/// The kernel takes a failed socket out of the maps (`sock_map_unhash`, net/core/sock_map.c), and the program
/// then poisons the direction to it. Such a direction is that peer's doing.
pub(super) fn failed_peer(client: &impl AsFd, backend: &impl AsFd) -> Option<Peer> {
    let has_failed = |state: io::Result<SocketState>| state.is_ok_and(|s| s == SocketState::Failed);
    if has_failed(socket_state(client)) {
        Some(Peer::Client)
    } else {
        has_failed(socket_state(backend)).then_some(Peer::Backend)
    }
}
