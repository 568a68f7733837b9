//! Watches all flows with one epoll of its own, and hears the program's events.
//!
//! Only hang-ups are watched (`EPOLLRDHUP`, and errors, which always are): the kernel wakes whoever
//! watches for readability for every packet that it redirects (sk_psock_data_ready).

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

/// Events taken at once.
const MAX_EVENTS_PER_WAIT: usize = 256;

/// Whom to wake for which socket.
pub(super) struct HangupMonitor {
    epoll: Arc<AsyncFd<OwnedFd>>,
    flows: Arc<FlowWakers>,
    tasks: [AbortHandle; 2],
}

#[derive(Default)]
struct FlowWakers(Mutex<HashMap<u64, watch::Sender<()>>>);

/// One flow's place among the watched; dropping it gives it up.
pub(super) struct Registration<'k> {
    monitor: &'k HangupMonitor,
    cookies: [u64; 2],
    /// Changes whenever there is something to look at.
    pub(super) wake_rx: watch::Receiver<()>,
}

impl HangupMonitor {
    /// Needs a running tokio.
    pub(super) fn start(program: Arc<SockmapProgram>, events: SockmapEvents) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let epoll = Arc::new(sys::async_fd(epoll, Interest::READABLE)?);
        let flows = Arc::new(FlowWakers::default());
        let epoll_task = tokio::spawn(run_epoll(Arc::clone(&epoll), Arc::clone(&flows)));
        let events_task = tokio::spawn(run_events(events, Arc::clone(&flows), program));
        Ok(Self { epoll, flows, tasks: [epoll_task.abort_handle(), events_task.abort_handle()] })
    }

    /// Watches two sockets, told apart by their cookies. What has happened already is told too.
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
        // Closing a socket takes it out of the epoll.
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
        // Fewer than fit: there are no more until the next event says so.
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
            Err(error) => return warn!(%error, "the kernel program is not heard any more"),
        }
        // An event that had no room in the ring came behind one that had: everybody looks.
        let lost = program.lost_events();
        if lost != lost_before {
            lost_before = lost;
            flows.wake_all();
        }
        program.flush_log();
    }
}
