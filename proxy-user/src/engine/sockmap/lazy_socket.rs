//! Sockets that the kernel forwards, and what they have come to.

use std::io;
use std::net::TcpStream;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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
pub(super) fn socket_state(socket: &TcpStream) -> SocketState {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    let result = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&no_wait)));
    let revents = polled[0].revents();
    match result {
        Ok(_) if revents.contains(PollFlags::ERR) => SocketState::Failed,
        Ok(_) if revents.intersects(PollFlags::RDHUP | PollFlags::HUP) => SocketState::PeerClosed,
        Ok(_) => SocketState::Open,
        Err(_) => SocketState::Failed,
    }
}
