//! Events of the packet programs.

use std::io;

use aya::maps::{Map, MapData, RingBuf};
use snisplit_common::abi::packet::FlowEvent;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::bpf::codec::decode;
use crate::bpf::error::BpfError;
use crate::sys;

/// Reader of the ring buffer of events.
pub(crate) struct FlowEvents(AsyncFd<RingBuf<MapData>>);

impl FlowEvents {
    /// Registers the ring buffer with the runtime.
    ///
    /// # Errors
    /// Fails if the map is not a ring buffer, or cannot be polled.
    pub(super) fn new(ring: Map) -> Result<Self, BpfError> {
        Ok(Self(sys::async_fd(RingBuf::try_from(ring)?, Interest::READABLE)?))
    }

    /// Waits for events, and returns all that have arrived.
    ///
    /// # Errors
    /// Fails if the ring buffer cannot be polled.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<FlowEvent>> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let mut events = Vec::new();
            while let Some(item) = ring.next() {
                events.extend(decode::<FlowEvent>(&item));
            }
            ready.clear_ready();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}
