//! A socket pair before its takeover: the hello, and the options of its sockets.

use std::io;

use rustix::net::{SendFlags, send};
use tokio::io::AsyncWriteExt as _;

use super::ports::PortLease;
use super::takeover_params::TakeoverParams;
use crate::engine::{FlowEnd, LocalErrorStage, Peer, SocketPair};
use crate::sys;

/// A socket pair that the packet engine may take over.
pub(in crate::engine) struct TakeoverCandidate {
    pub(in crate::engine) pair: SocketPair,
    /// `None` if the back end was not connected from a leased port.
    pub(in crate::engine) params: Option<Box<TakeoverParams>>,
}

impl TakeoverCandidate {
    /// Sets the options that the back end's socket has on other engines, and that it lacks until it may
    /// have to last.
    pub(super) fn apply_socket_options(&self) {
        if let Some(params) = &self.params {
            let backend = &self.pair.backend;
            // Fails on a socket whose connection is gone.
            let _gone =
                backend.set_nodelay().and_then(|()| backend.apply_timeouts(params.tcp_timeouts));
        }
    }

    /// Registers the back end's socket with tokio and sets its options.
    ///
    /// # Errors
    /// Fails if epoll_ctl(2) fails.
    pub(super) fn register_backend(self) -> io::Result<Self> {
        self.apply_socket_options();
        let Self { pair, params } = self;
        Ok(Self { pair: SocketPair { backend: pair.backend.register()?, ..pair }, params })
    }

    /// Returns the pair for another engine, and the lease of the port that its socket uses.
    ///
    /// # Errors
    /// Fails if epoll_ctl(2) fails.
    pub(in crate::engine) fn into_socket_pair(self) -> io::Result<(SocketPair, Option<PortLease>)> {
        let Self { pair, params } = self.register_backend()?;
        Ok((pair, params.map(|params| params.lease)))
    }

    /// Closes both sockets, and sends nothing to the peers. The flow still uses the port of the lease.
    pub(super) fn close_silently(self) -> Option<PortLease> {
        for socket in [&self.pair.client, &self.pair.backend] {
            // A socket without repair mode sends a reset, which `sni_out` drops.
            let _not_in_repair = sys::enable_repair(socket);
        }
        self.params.map(|params| params.lease)
    }

    /// Sends the hello to the back end: all `bytes` that wait in the client's socket.
    ///
    /// If more bytes wait by now, the programs find that the back end acknowledges more than
    /// `expected_acked`, and leave the flow to its sockets.
    ///
    /// # Errors
    /// Fails with the end of the flow if a socket fails.
    pub(super) async fn forward_hello(mut self, bytes: usize) -> Result<Self, FlowEnd> {
        // One byte of spare capacity shows whether the socket had more.
        let mut hello = Vec::with_capacity(bytes + 1);
        if let Err(error) = self.pair.client.recv_available(&mut hello) {
            let end = FlowEnd::from_io_error(Peer::Client, LocalErrorStage::Read, &error);
            return Err(self.pair.close(end).await);
        }
        if hello.is_empty() {
            return Err(self.pair.close(FlowEnd::ClientReset).await);
        }
        // The send buffer has room, as a rule. An error shows again below.
        let sent = send(&self.pair.backend, &hello, SendFlags::NOSIGNAL).unwrap_or_default();
        if sent < hello.len() {
            self = self
                .register_backend()
                .map_err(|error| FlowEnd::local_error(LocalErrorStage::Register, &error))?;
            if let Err(error) = self.pair.backend.write_all(&hello[sent..]).await {
                let end = FlowEnd::from_io_error(Peer::Backend, LocalErrorStage::Write, &error);
                return Err(self.pair.close(end).await);
            }
        }
        self.pair.counters.add_bytes(hello.len(), 0);
        Ok(self)
    }
}
