//! A connected stream socket: TCP, or a back end of this very host.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, recv};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

/// One end of a flow.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    /// One that nobody waits for yet, and so tokio does not know of it before it is [`Socket::register`].
    UnregisteredTcp(std::net::TcpStream),
    /// Knows no reset: however it is closed, its peer sees an end of stream (unix(7)).
    Unix(UnixStream),
}

/// What keeps a connection from staying when its peer is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpTimeouts {
    /// How long it may be idle before the peer is asked for.
    pub(crate) keepalive: Option<Duration>,
    /// How long sent data may stay unacknowledged; `None` for the kernel's own.
    pub(crate) user_timeout: Option<Duration>,
}

impl TcpTimeouts {
    /// The first probe after `keepalive`, then three more in as much time again.
    pub(crate) fn apply(self, socket: &socket2::Socket) -> io::Result<()> {
        if let Some(idle) = self.keepalive {
            let interval = (idle / 4).max(Duration::from_secs(1));
            let probes = TcpKeepalive::new().with_time(idle).with_interval(interval);
            socket.set_tcp_keepalive(&probes.with_retries(4))?;
        }
        match self.user_timeout {
            Some(limit) => socket.set_tcp_user_timeout(Some(limit)),
            None => Ok(()),
        }
    }
}

impl Socket {
    /// The same, and one can wait for what happens to it.
    pub(crate) fn register(self) -> io::Result<Self> {
        match self {
            Self::UnregisteredTcp(stream) => Ok(Self::Tcp(TcpStream::from_std(stream)?)),
            Self::Tcp(_) | Self::Unix(_) => Ok(self),
        }
    }

    /// The same, known to the runtime that this is called from, wherever it was before.
    pub(super) fn rebind_to_runtime(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(rebind_to_runtime(stream)?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
            Self::UnregisteredTcp(stream) => Self::UnregisteredTcp(stream),
        })
    }

    /// Our address and the peer's, of TCP.
    pub(crate) fn addresses(&self) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
        match self {
            Self::Tcp(stream) => Ok(Some((stream.local_addr()?, stream.peer_addr()?))),
            Self::UnregisteredTcp(stream) => Ok(Some((stream.local_addr()?, stream.peer_addr()?))),
            Self::Unix(_) => Ok(None),
        }
    }

    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await,
            Self::Unix(stream) => stream.ready(interest).await,
            Self::UnregisteredTcp(_) => Err(not_registered()),
        }
    }

    pub(crate) fn try_io<R>(
        &self,
        interest: Interest,
        act: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, act),
            Self::Unix(stream) => stream.try_io(interest, act),
            Self::UnregisteredTcp(_) => act(),
        }
    }

    /// Takes what has arrived, as far as `to` has room. If that was all, tokio learns of it, which otherwise
    /// believes that there is more until somebody looks.
    pub(super) fn recv_available(&self, to: &mut Vec<u8>) -> io::Result<()> {
        let mut received = None;
        let _all = self.try_io(Interest::READABLE, || {
            received = Some(recv(self, spare_capacity(to), RecvFlags::empty()));
            if to.len() < to.capacity() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        // It does not act on a socket that it has heard nothing of.
        let received =
            received.unwrap_or_else(|| recv(self, spare_capacity(to), RecvFlags::empty()));
        received.map(|_bytes| ()).map_err(io::Error::from)
    }

    /// Sends at once, and ends with a reset unless [`super::set_graceful_close`] is called.
    pub(crate) fn set_nodelay_and_reset_on_close(&self) -> io::Result<()> {
        self.set_nodelay()?;
        self.set_reset_on_close()
    }

    /// Sends at once.
    pub(super) fn set_nodelay(&self) -> io::Result<()> {
        self.set_option(|socket| socket.set_tcp_nodelay(true))
    }

    pub(super) fn set_reset_on_close(&self) -> io::Result<()> {
        self.set_option(|socket| socket.set_linger(Some(Duration::ZERO)))
    }

    /// Does not stay when its peer is gone.
    pub(crate) fn apply_timeouts(&self, timeouts: TcpTimeouts) -> io::Result<()> {
        self.set_option(|socket| timeouts.apply(socket))
    }

    /// What there is of TCP's options.
    fn set_option(
        &self,
        option: impl FnOnce(&socket2::Socket) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => option(&SockRef::from(stream)),
            Self::UnregisteredTcp(stream) => option(&SockRef::from(stream)),
            Self::Unix(_) => Ok(()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            Self::UnregisteredTcp(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::UnregisteredTcp(_) => Poll::Ready(Err(not_registered())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::UnregisteredTcp(_) => Poll::Ready(Err(not_registered())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::UnregisteredTcp(_) => Poll::Ready(Err(not_registered())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::UnregisteredTcp(_) => Poll::Ready(Err(not_registered())),
        }
    }
}

/// The same stream, known to the runtime that this is called from, wherever it was before.
pub(crate) fn rebind_to_runtime(stream: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.into_std()?)
}

fn not_registered() -> io::Error {
    io::Error::other("nobody waits for this socket yet")
}
