//! Monitor of all flows of the sockmap engine: hang-ups of their sockets, and events of the program.
//!
//! One epoll instance watches all sockets, for `EPOLLRDHUP` and errors only. For every packet that it
//! redirects the kernel wakes who waits for readability (`sk_psock_data_ready`).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::warn;

use crate::bpf::{SockmapEvents, SockmapProgram};
use crate::sys;

/// Events read by one epoll_wait(2).
const MAX_EVENTS_PER_WAIT: usize = 256;

/// Wakes the task of a flow when one of its sockets hangs up or the program has an event of it.
pub(super) struct HangupMonitor {
    epoll: Arc<AsyncFd<OwnedFd>>,
    flows: Arc<FlowWakers>,
    tasks: [AbortHandle; 2],
}

/// The wakers of flows, by the cookies of their sockets.
#[derive(Default)]
struct FlowWakers(Mutex<HashMap<u64, watch::Sender<()>>>);

/// Registration of a flow with the monitor. Dropping it ends the registration.
pub(super) struct Registration<'k> {
    monitor: &'k HangupMonitor,
    cookies: [u64; 2],
    /// Changes whenever the flow should check its sockets and entries.
    pub(super) wake_rx: watch::Receiver<()>,
}

impl HangupMonitor {
    /// Starts the monitor's tasks. Needs a tokio runtime.
    ///
    /// # Errors
    /// Fails if epoll_create1(2) or the registration of its descriptor fails.
    pub(super) fn start(program: Arc<SockmapProgram>, events: SockmapEvents) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let epoll = Arc::new(sys::async_fd(epoll, Interest::READABLE)?);
        let flows = Arc::new(FlowWakers::default());
        let epoll_task = tokio::spawn(run_epoll(Arc::clone(&epoll), Arc::clone(&flows)));
        let events_task = tokio::spawn(run_events(events, Arc::clone(&flows), program));
        Ok(Self { epoll, flows, tasks: [epoll_task.abort_handle(), events_task.abort_handle()] })
    }

    /// Watches two sockets, which it tells apart by their cookies. Wakes the flow for what has happened
    /// already, too.
    ///
    /// # Errors
    /// Fails if epoll_ctl(2) fails.
    pub(super) fn register(
        &self,
        sockets: [&impl AsFd; 2],
        cookies: [u64; 2],
    ) -> io::Result<Registration<'_>> {
        let (wake_tx, wake_rx) = watch::channel(());
        let mut flows = self.flows.lock();
        cookies.iter().for_each(|cookie| _ = flows.insert(*cookie, wake_tx.clone()));
        drop(flows);
        let registration = Registration { monitor: self, cookies, wake_rx };
        for (socket, cookie) in sockets.into_iter().zip(cookies) {
            let hang_up = epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
            epoll::add(self.epoll.get_ref(), socket, epoll::EventData::new_u64(cookie), hang_up)?;
        }
        Ok(registration)
    }
}

impl Drop for HangupMonitor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        // close(2) removes a socket from the epoll instance.
        let mut flows = self.monitor.flows.lock();
        self.cookies.iter().for_each(|cookie| _ = flows.remove(cookie));
    }
}

impl FlowWakers {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, cookie: u64) {
        if let Some(wake_tx) = self.lock().get(&cookie) {
            wake_tx.send_replace(());
        }
    }

    fn wake_all(&self) {
        self.lock().values().for_each(|wake_tx| wake_tx.send_replace(()));
    }
}

async fn run_epoll(epoll: Arc<AsyncFd<OwnedFd>>, flows: Arc<FlowWakers>) {
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let Ok(mut ready) = epoll.readable().await else { return };
        let mut events = Vec::with_capacity(MAX_EVENTS_PER_WAIT);
        let result = epoll::wait(ready.get_inner(), spare_capacity(&mut events), Some(&no_wait));
        events.iter().for_each(|event: &epoll::Event| flows.wake(event.data.u64()));
        // The buffer is not full: no event is left.
        if result.is_err() || events.len() < MAX_EVENTS_PER_WAIT {
            ready.clear_ready();
        }
    }
}

async fn run_events(
    mut events: SockmapEvents,
    flows: Arc<FlowWakers>,
    program: Arc<SockmapProgram>,
) {
    let mut lost_before = 0;
    loop {
        match events.next().await {
            Ok(batch) => batch.iter().for_each(|(cookie, _)| flows.wake(*cookie)),
            Err(error) => return warn!(%error, "cannot read events of the sockmap program"),
        }
        // The ring buffer had no room for an event. Events before it were read: wake every flow.
        let lost = program.lost_events();
        if lost != lost_before {
            lost_before = lost;
            flows.wake_all();
        }
        program.flush_log();
    }
}
