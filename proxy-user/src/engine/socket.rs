//! Connected stream sockets: TCP, or Unix sockets of back ends on this host.

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

/// The agent's socket to one peer of a flow.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    /// A TCP socket that is not registered with tokio, because no task waits for it yet. See
    /// [`Socket::register`].
    UnregisteredTcp(std::net::TcpStream),
    /// A Unix socket. It has no reset: its peer always sees an end of stream (unix(7)).
    Unix(UnixStream),
}

/// Timeouts after which the kernel ends a connection whose peer does not answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpTimeouts {
    /// Idle time before the first keepalive probe; `None` for no probes.
    pub(crate) keepalive: Option<Duration>,
    /// Time that sent data may stay unacknowledged; `None` for the kernel's own limit.
    pub(crate) user_timeout: Option<Duration>,
}

impl TcpTimeouts {
    /// Sets both timeouts on a socket. The first keepalive probe goes out after `keepalive`, and three
    /// more within the same time again.
    ///
    /// # Errors
    /// Fails if setsockopt(2) fails.
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
    /// Registers an unregistered socket with the runtime of the calling task.
    ///
    /// # Errors
    /// Fails if epoll_ctl(2) fails.
    pub(crate) fn register(self) -> io::Result<Self> {
        match self {
            Self::UnregisteredTcp(stream) => Ok(Self::Tcp(TcpStream::from_std(stream)?)),
            Self::Tcp(_) | Self::Unix(_) => Ok(self),
        }
    }

    /// Moves a registered socket to the runtime of the calling task.
    pub(super) fn rebind_to_runtime(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(rebind_to_runtime(stream)?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
            Self::UnregisteredTcp(stream) => Self::UnregisteredTcp(stream),
        })
    }

    /// The local and the peer's address; `None` for a Unix socket.
    ///
    /// # Errors
    /// Fails if the peer has reset the connection, so that the socket is not connected.
    pub(crate) fn addresses(&self) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
        match self {
            Self::Tcp(stream) => Ok(Some((stream.local_addr()?, stream.peer_addr()?))),
            Self::UnregisteredTcp(stream) => Ok(Some((stream.local_addr()?, stream.peer_addr()?))),
            Self::Unix(_) => Ok(None),
        }
    }

    /// Waits for one of these events, as tokio's `ready`.
    ///
    /// # Errors
    /// Fails if the socket is not registered, or its runtime shuts down.
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await,
            Self::Unix(stream) => stream.ready(interest).await,
            Self::UnregisteredTcp(_) => Err(not_registered()),
        }
    }

    /// Runs a system call, as tokio's `try_io`: on `WouldBlock` it clears the readiness.
    ///
    /// # Errors
    /// Fails with the error of `act`, and with `WouldBlock` if the socket is not ready.
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

    /// Receives what waits in the socket, up to the spare capacity of `to`.
    ///
    /// If that was all, this clears tokio's readiness, which a read outside of tokio leaves set.
    pub(super) fn recv_available(&self, to: &mut Vec<u8>) -> io::Result<()> {
        let mut received = None;
        let _drained = self.try_io(Interest::READABLE, || {
            received = Some(recv(self, spare_capacity(to), RecvFlags::empty()));
            if to.len() < to.capacity() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        // Tokio makes no system call on a socket that it has no event of.
        let received =
            received.unwrap_or_else(|| recv(self, spare_capacity(to), RecvFlags::empty()));
        received.map(|_bytes| ()).map_err(io::Error::from)
    }

    /// Sets `TCP_NODELAY`, and makes close(2) send a reset.
    ///
    /// # Errors
    /// Fails if setsockopt(2) fails.
    pub(crate) fn set_nodelay_and_reset_on_close(&self) -> io::Result<()> {
        self.set_nodelay()?;
        self.set_reset_on_close()
    }

    /// Sets `TCP_NODELAY`: the kernel sends small messages at once.
    pub(super) fn set_nodelay(&self) -> io::Result<()> {
        self.set_option(|socket| socket.set_tcp_nodelay(true))
    }

    /// Makes close(2) send a reset: `SO_LINGER` with a timeout of 0.
    pub(super) fn set_reset_on_close(&self) -> io::Result<()> {
        self.set_option(|socket| socket.set_linger(Some(Duration::ZERO)))
    }

    /// Sets the TCP timeouts.
    ///
    /// # Errors
    /// Fails if setsockopt(2) fails.
    pub(crate) fn apply_timeouts(&self, timeouts: TcpTimeouts) -> io::Result<()> {
        self.set_option(|socket| timeouts.apply(socket))
    }

    /// Sets an option of a TCP socket. A Unix socket has none of them.
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

/// Moves a stream to the runtime of the calling task.
///
/// # Errors
/// Fails if epoll_ctl(2) fails.
pub(crate) fn rebind_to_runtime(stream: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.into_std()?)
}

fn not_registered() -> io::Error {
    io::Error::other("the socket is not registered")
}
