//! Many clients and servers at the same time, for tests of many short flows.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::wait::sleep_for;

/// More servers than clients, for connections that are not closed yet.
const SPARE_SERVERS: usize = 8;

/// A number of flows, and of clients that open them.
#[derive(Clone, Copy, Debug)]
pub struct ConcurrentLoad<'a> {
    /// Listener of the back end.
    pub listener: &'a TcpListener,
    /// Clients at the same time.
    pub clients: usize,
    /// Flows in all.
    pub flows: usize,
    /// Timeout of reads on the connections that the back end accepts.
    pub read_timeout: Duration,
}

impl ConcurrentLoad<'_> {
    /// Calls `client` with the number of each flow, and `server` with each connection that the back end accepts.
    /// Returns how many of these threads have panicked.
    pub fn run(self, client: impl Fn(usize) + Sync, server: impl Fn(TcpStream) + Sync) -> usize {
        self.listener.set_nonblocking(true).unwrap();
        let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let run_clients = || {
            while let number @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                && number < self.flows
            {
                client(number);
            }
        };
        let serve = || {
            while !over.load(Ordering::Relaxed) {
                let Ok((stream, _)) = self.listener.accept() else {
                    sleep_for(Duration::from_millis(1));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(self.read_timeout)).unwrap();
                server(stream);
            }
        };
        thread::scope(|scope| {
            let servers: Vec<_> =
                (0..self.clients + SPARE_SERVERS).map(|_| scope.spawn(serve)).collect();
            let clients: Vec<_> = (0..self.clients).map(|_| scope.spawn(run_clients)).collect();
            let clients: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
            over.store(true, Ordering::Relaxed);
            let servers = servers.into_iter().map(thread::ScopedJoinHandle::join);
            clients.into_iter().chain(servers).filter(Result::is_err).count()
        })
    }
}
