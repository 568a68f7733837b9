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

use crate::kernel::{Events, Verdict};
use crate::sys;

/// Events taken at once.
const AT_ONCE: usize = 256;

/// Whom to wake for which socket.
pub(super) struct Keeper {
    epoll: Arc<AsyncFd<OwnedFd>>,
    flows: Arc<Flows>,
    tasks: [AbortHandle; 2],
}

#[derive(Default)]
struct Flows(Mutex<HashMap<u64, watch::Sender<()>>>);

/// One flow's place among the watched; dropping it gives it up.
pub(super) struct Watched<'k> {
    keeper: &'k Keeper,
    cookies: [u64; 2],
    /// Changes whenever there is something to look at.
    pub(super) bell: watch::Receiver<()>,
}

impl Keeper {
    /// Needs a running tokio.
    pub(super) fn start(verdict: Arc<Verdict>, events: Events) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let epoll = Arc::new(sys::watch(epoll, Interest::READABLE)?);
        let flows = Arc::new(Flows::default());
        let hang_ups = tokio::spawn(hear_hang_ups(Arc::clone(&epoll), Arc::clone(&flows)));
        let told = tokio::spawn(hear_events(events, Arc::clone(&flows), verdict));
        Ok(Self { epoll, flows, tasks: [hang_ups.abort_handle(), told.abort_handle()] })
    }

    /// Watches two sockets, told apart by their cookies. What has happened already is told too.
    pub(super) fn watch(
        &self,
        sockets: [&impl AsFd; 2],
        cookies: [u64; 2],
    ) -> io::Result<Watched<'_>> {
        let (ringer, bell) = watch::channel(());
        let mut flows = self.flows.lock();
        cookies.iter().for_each(|cookie| _ = flows.insert(*cookie, ringer.clone()));
        drop(flows);
        let watched = Watched { keeper: self, cookies, bell };
        for (socket, cookie) in sockets.into_iter().zip(cookies) {
            let hang_up = epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
            epoll::add(self.epoll.get_ref(), socket, epoll::EventData::new_u64(cookie), hang_up)?;
        }
        Ok(watched)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        // Closing a socket takes it out of the epoll.
        let mut flows = self.keeper.flows.lock();
        self.cookies.iter().for_each(|cookie| _ = flows.remove(cookie));
    }
}

impl Flows {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, cookie: u64) {
        if let Some(ringer) = self.lock().get(&cookie) {
            ringer.send_replace(());
        }
    }

    fn wake_all(&self) {
        self.lock().values().for_each(|ringer| ringer.send_replace(()));
    }
}

async fn hear_hang_ups(epoll: Arc<AsyncFd<OwnedFd>>, flows: Arc<Flows>) {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let Ok(mut ready) = epoll.readable().await else { return };
        let mut events = Vec::with_capacity(AT_ONCE);
        let waited = epoll::wait(ready.get_inner(), spare_capacity(&mut events), Some(&at_once));
        events.iter().for_each(|event: &epoll::Event| flows.wake(event.data.u64()));
        // Fewer than fit: there are no more until the next event says so.
        if waited.is_err() || events.len() < AT_ONCE {
            ready.clear_ready();
        }
    }
}

async fn hear_events(mut events: Events, flows: Arc<Flows>, verdict: Arc<Verdict>) {
    let mut lost_before = 0;
    loop {
        match events.next().await {
            Ok(told) => told.iter().for_each(|(cookie, _)| flows.wake(*cookie)),
            Err(error) => return warn!(%error, "the kernel program is not heard any more"),
        }
        // An event that had no room in the ring came behind one that had: everybody looks.
        let lost = verdict.events_lost();
        if lost != lost_before {
            lost_before = lost;
            flows.wake_all();
        }
        verdict.flush_log();
    }
}
