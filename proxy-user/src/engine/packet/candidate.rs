//! A socket pair that the packet engine may take over, and what its sockets need until then.

use std::io;

use rustix::net::{SendFlags, send};
use tokio::io::AsyncWriteExt as _;

use super::ports::PortLease;
use super::takeover_params::TakeoverParams;
use crate::engine::{FlowEnd, LocalErrorStage, Peer, SocketPair};
use crate::sys;

/// A flow that the packet engine may take over.
pub(in crate::engine) struct TakeoverCandidate {
    pub(in crate::engine) pair: SocketPair,
    /// `None` if the back end was not connected for a takeover.
    pub(in crate::engine) params: Option<Box<TakeoverParams>>,
}

impl TakeoverCandidate {
    /// Has the back end's socket be what it is on other engines, as it may have to last.
    pub(super) fn apply_socket_options(&self) {
        if let Some(params) = &self.params {
            let backend = &self.pair.backend;
            // Fails on a socket that is dead already.
            let _dead =
                backend.set_nodelay().and_then(|()| backend.apply_timeouts(params.tcp_timeouts));
        }
    }

    /// The same, for whoever waits for it.
    pub(super) fn register_backend(self) -> io::Result<Self> {
        self.apply_socket_options();
        let Self { pair, params } = self;
        Ok(Self { pair: SocketPair { backend: pair.backend.register()?, ..pair }, params })
    }

    /// The pair for another engine, and the port that is in use until its sockets are closed.
    pub(in crate::engine) fn into_socket_pair(self) -> io::Result<(SocketPair, Option<PortLease>)> {
        let Self { pair, params } = self.register_backend()?;
        Ok((pair, params.map(|params| params.lease)))
    }

    /// Forgets both sockets without a word to their peers; the port is still in use.
    pub(super) fn close_silently(self) -> Option<PortLease> {
        for socket in [&self.pair.client, &self.pair.backend] {
            // What one that is not silent says is not let out (`sni_out`).
            let _not_silent = sys::enable_repair(socket);
        }
        self.params.map(|params| params.lease)
    }

    /// Gives the back end what the client has said, which is in its socket to the last byte. Should that be
    /// more by now, the programs find that the flow is not where it is `due`.
    pub(super) async fn forward_hello(mut self, bytes: usize) -> Result<Self, FlowEnd> {
        // Room for one more shows that this was all.
        let mut hello = Vec::with_capacity(bytes + 1);
        if let Err(error) = self.pair.client.recv_available(&mut hello) {
            let end = FlowEnd::from_io_error(Peer::Client, LocalErrorStage::Read, &error);
            return Err(self.pair.close(end).await);
        }
        if hello.is_empty() {
            return Err(self.pair.close(FlowEnd::ClientReset).await);
        }
        // There is room for it, as a rule; an error comes again.
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
