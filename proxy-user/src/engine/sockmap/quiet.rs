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
pub(super) struct Quiet {
    socket: Arc<TcpStream>,
    /// Both directions of a flow may need it.
    watched: OnceLock<AsyncFd<Arc<TcpStream>>>,
}

/// The two sockets of a direction.
#[derive(Clone, Copy)]
pub(super) struct Sockets<'s> {
    pub(super) from: &'s Quiet,
    pub(super) to: &'s Quiet,
}

impl Quiet {
    /// Takes a socket out of tokio's sight.
    pub(super) fn new(socket: tokio::net::TcpStream) -> io::Result<Self> {
        Ok(Self { socket: Arc::new(socket.into_std()?), watched: OnceLock::new() })
    }

    pub(super) fn watched(&self) -> io::Result<&AsyncFd<Arc<TcpStream>>> {
        if self.watched.get().is_none() {
            let both = Interest::READABLE | Interest::WRITABLE;
            // Both directions run in one task, so nobody else sets it in between.
            let _ours = self.watched.set(sys::watch(Arc::clone(&self.socket), both)?);
        }
        self.watched.get().ok_or_else(|| io::ErrorKind::Other.into())
    }
}

impl Deref for Quiet {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.socket
    }
}

impl AsFd for Quiet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a socket has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Open,
    /// Its peer sends no more.
    Ended,
    Broken,
}

/// Asks without taking the error off the socket.
pub(super) fn condition(socket: &TcpStream) -> Condition {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let asked = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&at_once)));
    let found = polled[0].revents();
    match asked {
        Ok(_) if found.contains(PollFlags::ERR) => Condition::Broken,
        Ok(_) if found.intersects(PollFlags::RDHUP | PollFlags::HUP) => Condition::Ended,
        Ok(_) => Condition::Open,
        Err(_) => Condition::Broken,
    }
}
