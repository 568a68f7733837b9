//! The monitor of flows: it forwards the events of the BPF programs to the tasks of flows, and removes
//! the entries of flows that have ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snisplit_common::abi::packet::{
    FlowEntry, FlowEvent, FlowState, MAX_PACKET_FLOWS, PacketCounter,
};
use tokio::task::{JoinSet, spawn_blocking, yield_now};
use tokio::time::sleep;

use super::clock::{idle_time, ktime_now};
use super::flow_watch::{FlowUpdate, FlowWatch};
use crate::bpf::packet::{FlowEvents, PacketPrograms};
use crate::engine::Peer;

/// Time in which retransmissions of an ended flow are still translated, as long as the kernel keeps
/// TIME-WAIT (`TCP_TIMEWAIT_LEN`, include/net/tcp.h). A new connection on the port ends it earlier
/// (`sni_out`).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Time between two checks of the TIME-WAIT queue, and for events that were lost.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which retired flows are collected, to reclaim their entries together.
const RECLAIM_DELAY: Duration = Duration::from_millis(100);
/// Time between two searches for dead peers.
const DEAD_PEER_CHECK_INTERVAL: Duration = Duration::from_secs(600);
/// Time without a packet after which a peer counts as dead: the least idle time that a NAT on the path
/// must allow, 2 h 4 min (RFC 5382 §5).
const DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(2 * 3_600 + 240);
/// Number of flows in TIME-WAIT above which they are removed after [`POLL_INTERVAL`], so that new flows have room.
const RECLAIM_ABOVE: usize = MAX_PACKET_FLOWS / 2;

/// Receiver of the events of the BPF programs.
pub(super) struct FlowMonitor {
    programs: Arc<PacketPrograms>,
    flows: Mutex<HashMap<u64, Arc<FlowWatch>>>,
    /// Flows that have ended, with the time of their end, oldest first.
    time_wait: Mutex<VecDeque<(u64, Instant)>>,
}

impl FlowMonitor {
    /// Starts the monitor in the current runtime. Dropping the returned tasks ends them.
    pub(super) fn start(
        programs: Arc<PacketPrograms>,
        events: FlowEvents,
    ) -> (Arc<Self>, JoinSet<()>) {
        let monitor =
            Arc::new(Self { programs, flows: Mutex::default(), time_wait: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(run_events(Arc::clone(&monitor), events));
        tasks.spawn(run_periodic_checks(Arc::clone(&monitor)));
        tasks.spawn(run_reclaim(Arc::clone(&monitor.programs)));
        (monitor, tasks)
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<u64, Arc<FlowWatch>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time_wait(&self) -> MutexGuard<'_, VecDeque<(u64, Instant)>> {
        self.time_wait.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a flow, before its entry is in the map.
    pub(super) fn watch(&self, flow_id: u64) -> Arc<FlowWatch> {
        let watch = Arc::new(FlowWatch::default());
        self.flows().insert(flow_id, Arc::clone(&watch));
        watch
    }

    /// Ends the watch of a flow.
    pub(super) fn unwatch(&self, flow_id: u64) {
        self.flows().remove(&flow_id);
    }

    /// Adds a flow that has ended to the TIME-WAIT queue.
    pub(super) fn enter_time_wait(&self, flow_id: u64) {
        self.time_wait().push_back((flow_id, Instant::now()));
    }

    /// Forwards an update to the watch of a flow.
    pub(super) fn publish(&self, flow_id: u64, update: FlowUpdate) {
        if let Some(watch) = self.flows().get(&flow_id) {
            watch.publish(update);
        }
    }

    /// Forwards an event of the BPF programs to the watch of its flow.
    fn handle_event(&self, event: &FlowEvent) {
        if event.state == FlowState::Pending {
            // A new connection has the port of this flow, which therefore leaves TIME-WAIT.
            self.programs.retire(event.flow_id);
        }
        if let Some(watch) = self.flows().get(&event.flow_id) {
            if event.state.is_terminal() {
                watch.set_delivered(event.bytes_up, event.bytes_down);
            }
            watch.publish(FlowUpdate::State(event.state));
        }
    }

    /// Searches for flows with a dead peer. Takes the lock for one flow at a time, so that new flows do not
    /// wait for the whole search.
    async fn check_dead_peers(&self) {
        let flow_ids: Vec<u64> = self.flows().keys().copied().collect();
        for flow_id in flow_ids {
            if let Some(peer) =
                self.programs.flow_entry(flow_id).and_then(|entry| dead_peer(&entry, ktime_now()))
            {
                self.publish(flow_id, FlowUpdate::PeerDead(peer));
            }
            yield_now().await;
        }
    }

    /// Removes the flows whose TIME-WAIT is over.
    fn expire_time_wait(&self) {
        let limit = if self.time_wait().len() > RECLAIM_ABOVE { POLL_INTERVAL } else { TIME_WAIT };
        let is_due = |(_, since): &mut (u64, Instant)| since.elapsed() >= limit;
        // The lock is not held during the system calls.
        let pop_due = || self.time_wait().pop_front_if(is_due);
        std::iter::from_fn(pop_due).for_each(|(flow_id, _)| _ = self.programs.remove_flow(flow_id));
    }
}

async fn run_events(monitor: Arc<FlowMonitor>, mut events: FlowEvents) {
    // If the ring fails, the periodic checks remain.
    while let Ok(batch) = events.next().await {
        batch.iter().for_each(|event| monitor.handle_event(event));
    }
}

async fn run_periodic_checks(monitor: Arc<FlowMonitor>) {
    let mut lost = 0;
    let mut last_dead_peer_check: Option<Instant> = None;
    loop {
        sleep(POLL_INTERVAL).await;
        let lost_before = lost;
        lost = monitor.programs.counter(PacketCounter::EventLost).unwrap_or_default();
        if lost != lost_before {
            for (flow_id, entry) in monitor.programs.flow_entries() {
                monitor.publish(flow_id, FlowUpdate::State(entry.state));
            }
        }
        // The first check is at once: adopted flows may have been without an agent for a long time.
        if last_dead_peer_check
            .map_or(!monitor.flows().is_empty(), |at| at.elapsed() > DEAD_PEER_CHECK_INTERVAL)
        {
            last_dead_peer_check = Some(Instant::now());
            monitor.check_dead_peers().await;
        }
        let reset_requests = monitor.programs.take_reset_requests();
        reset_requests
            .into_iter()
            .for_each(|flow_id| monitor.publish(flow_id, FlowUpdate::ResetRequested));
        monitor.expire_time_wait();
    }
}

async fn run_reclaim(programs: Arc<PacketPrograms>) {
    loop {
        programs.retired.notified().await;
        sleep(RECLAIM_DELAY).await;
        let programs = Arc::clone(&programs);
        let _panicked = spawn_blocking(move || programs.reclaim()).await;
    }
}

/// Returns the peer of an offloaded flow that has sent no packet for [`DEAD_PEER_TIMEOUT`]. The connections
/// of an offloaded flow have no keepalive probes.
fn dead_peer(entry: &FlowEntry, now: Duration) -> Option<Peer> {
    let peers = [(Peer::Client, &entry.client_state), (Peer::Backend, &entry.backend_state)];
    let (peer, _) = peers
        .into_iter()
        .find(|(_, state)| idle_time(state.last_seen_ns, now) > DEAD_PEER_TIMEOUT)?;
    (entry.state == FlowState::Offloaded).then_some(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_silent_for_two_hours_is_dead() {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let seen = |client: u64, backend: u64| {
            let mut entry = FlowEntry { state: FlowState::Offloaded, ..FlowEntry::default() };
            entry.client_state.last_seen_ns = hours(client).as_nanos() as u64;
            entry.backend_state.last_seen_ns = hours(backend).as_nanos() as u64;
            entry
        };
        assert_eq!(dead_peer(&seen(10, 10), hours(12)), None);
        assert_eq!(dead_peer(&seen(9, 12), hours(12)), Some(Peer::Client));
        assert_eq!(dead_peer(&seen(12, 9), hours(12)), Some(Peer::Backend));
        assert_eq!(dead_peer(&seen(9, 9), hours(12)), Some(Peer::Client));
        assert_eq!(dead_peer(&seen(12, 13), hours(12)), None, "the programs' clock is ahead");
        let closed = FlowEntry { state: FlowState::Closed, ..seen(9, 9) };
        assert_eq!(dead_peer(&closed, hours(12)), None);
    }
}
