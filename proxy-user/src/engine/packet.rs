//! The kernel forwards packets, and the proxy leaves the path: when the back end answers the hello, the
//! two connections are made one by translating each packet from one's numbers to the other's
//! (`proxy-ebpf/src/packet`), and both sockets are forgotten.
//!
//! A flow that cannot be made one stays with its sockets: until the back end has answered they are
//! whole, and the ladder goes on with them.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::ioctl_fionread;
use rustix::net::{SendFlags, send};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::sockmap::handed;
use super::{Course, Declined, End, Pair, Tally, Tier};
pub(crate) use crate::kernel::packet::Hook;
use crate::kernel::packet::{Link, Splicer};
use crate::kernel::{KernelError, cookie};
use crate::sys;

mod adopt;
mod clock;
mod cut;
mod flow;
mod keeper;
mod ports;
mod story;
mod terms;

pub(crate) use adopt::Orphan;
pub(crate) use cut::reset;
pub(crate) use flow::Flight;
use flow::{Flow, Stage};
use keeper::Keeper;
pub(crate) use ports::{Lease, Ports};
pub(crate) use terms::{Front, Terms};

/// Within this time nearly every back end has answered, the programs have told of it, and its socket is no
/// more. One that has not is given what keeps sockets well, and is waited for too, which takes system calls:
/// its back end may be heard by a way that the programs do not see.
const SOON: Duration = Duration::from_millis(100);
/// What a socket counts of its SYN.
const A_SYN: u64 = 1;

/// Translates packets; cloning shares it.
#[derive(Clone)]
pub(crate) struct Packet {
    splicer: Arc<Splicer>,
    keeper: Arc<Keeper>,
    ports: Arc<Ports>,
    _tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Packet {
    /// Loads the programs, attaches them to these interfaces, and begins to listen to them. Needs a
    /// running tokio.
    pub(crate) fn load(
        places: (&[Link], Hook),
        ports: Ports,
        pins: Option<&Path>,
    ) -> Result<Self, KernelError> {
        let (splicer, events) = Splicer::load(places, pins)?;
        let splicer = Arc::new(splicer);
        let (keeper, tasks) = Keeper::start(Arc::clone(&splicer), events);
        Ok(Self { splicer, keeper, ports: Arc::new(ports), _tasks: Arc::new(Mutex::new(tasks)) })
    }

    /// Has frames go from driver to driver (XDP), where the program is in them and they take frames.
    pub(crate) fn use_drivers(
        &self,
        takes_frames: impl Fn(u32) -> bool,
    ) -> Result<(), KernelError> {
        let mut able = self.splicer.in_drivers().iter().filter(|number| takes_frames(**number));
        able.try_for_each(|number| self.splicer.send_by_driver(*number))
    }

    /// A port of ours towards a back end, which nothing else uses.
    pub(crate) fn lease(&self, to: SocketAddr) -> Option<Lease> {
        self.ports.lease(to)
    }

    /// Has a SYN from this port offer no more than that, until the answer is dropped; `None` if it does
    /// not anyway.
    pub(crate) fn restrain(
        &self,
        lease: &mut Lease,
        front: &Front,
    ) -> Result<Option<Restrained>, KernelError> {
        if !front.restrains(lease.told_mss()) {
            return Ok(None);
        }
        let (to, port) = lease.place();
        self.splicer.offer(to, port, front.offer())?;
        lease.offered = Some(front.mss());
        Ok(Some(Restrained { splicer: Arc::clone(&self.splicer), to, port }))
    }

    pub(super) fn route(&self, name: &str) -> u32 {
        self.splicer.route(name)
    }

    /// Everything up to the hello, and how many bytes that has. `Err` is why not.
    fn arm(&self, pair: &Pair) -> Result<(Flow, usize), &'static str> {
        let (mut splice, info) = terms::splice_of(pair)?;
        let hello = ioctl_fionread(&pair.client).unwrap_or_default();
        if hello == 0 {
            return Err("not_at_the_hello");
        }
        let handed = match info.is_drained {
            true => info.bytes_acked,
            false => handed(&pair.backend).map_err(|_| "not_connected")?,
        };
        if handed > A_SYN {
            // What goes behind a PROXY header must not wait for its acknowledgement.
            pair.take_care();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        splice.started_at = now.as_secs();
        splice.route_id = pair.route;
        // The program counts in 32 bits, as TCP does.
        splice.expected_acked = (handed + hello) as u32;
        let number = cookie(&pair.client).map_err(|_| "not_connected")?;
        let story = self.keeper.follow(number);
        let flow = Flow { engine: self.clone(), number, story, stage: Stage::Armed };
        self.splicer.arm(number, &splice).map_err(|_| "no_room")?;
        Ok((flow, hello as usize))
    }
}

/// A SYN that is held back.
pub(crate) struct Restrained {
    splicer: Arc<Splicer>,
    to: SocketAddr,
    port: u16,
}

impl Drop for Restrained {
    fn drop(&mut self) {
        let _gone_already = self.splicer.offer(self.to, self.port, 0);
    }
}

impl Packet {
    /// Takes a pair over, or hands it back as it was. Once the kernel has the flow, nothing that it began with
    /// is needed, so its caller gives that back before it waits for the end.
    pub(super) async fn take(&self, pair: Pair) -> Result<Course, Declined> {
        let (mut flow, hello) = match self.arm(&pair) {
            Ok(armed) => armed,
            Err(reason) => return Err(Declined { pair, reason }),
        };
        // As long as no other engine has it.
        pair.settle(Tier::Packet);
        let pair = match say_hello(pair, hello).await {
            Ok(pair) => pair,
            Err(end) => return Ok(Course::Ended(end)),
        };
        let (pair, decided) = match timeout(SOON, flow.decided(&pair)).await {
            Ok(decided) => (pair, decided),
            Err(_) => {
                let Ok(pair) = pair.kept() else { return Ok(Course::Ended(End::BackendReset)) };
                let decided = flow.decided(&pair).await;
                (pair, decided)
            }
        };
        if let Err(why) = decided {
            return Err(Declined { pair, reason: why.label() });
        }
        flow.stage = Stage::Flying;
        let tally = Arc::clone(&pair.tally);
        let lease = pair.vanish();
        Ok(Course::Flying(Box::new(Flight { flow, lease, tally })))
    }
}

impl Pair {
    /// Has the back end's socket be what it is on other engines, as it may have to last.
    pub(super) fn take_care(&self) {
        if let Some(terms) = &self.terms {
            // Fails on a socket that is dead already.
            let _dead = self.backend.hasten().and_then(|()| self.backend.keep_up(terms.upkeep));
        }
    }

    /// The same, for whoever waits for it.
    pub(super) fn kept(self) -> io::Result<Self> {
        self.take_care();
        Ok(Self { backend: self.backend.watched()?, ..self })
    }

    /// Forgets both sockets without a word to their peers; the port is still in use.
    fn vanish(mut self) -> Option<Lease> {
        for socket in [&self.client, &self.backend] {
            // What one that is not silent says is not let out (`sni_out`).
            let _not_silent = sys::set_repair(socket);
        }
        self.terms.take().map(|terms| terms.lease)
    }
}

/// Gives the back end what the client has said, which is in its socket to the last byte. Should that be
/// more by now, the programs find that the flow is not where it is `due`.
async fn say_hello(mut pair: Pair, bytes: usize) -> Result<Pair, End> {
    // Room for one more shows that this was all.
    let mut hello = Vec::with_capacity(bytes + 1);
    if pair.client.take(&mut hello).is_err() || hello.is_empty() {
        return Err(pair.close(End::ClientReset).await);
    }
    // There is room for it, as a rule; an error comes again.
    let sent = send(&pair.backend, &hello, SendFlags::NOSIGNAL).unwrap_or_default();
    if sent < hello.len() {
        pair = pair.kept().map_err(|_| End::BackendReset)?;
        if pair.backend.write_all(&hello[sent..]).await.is_err() {
            return Err(pair.close(End::BackendReset).await);
        }
    }
    pair.tally.tell(hello.len(), 0);
    Ok(pair)
}
