//! The programs of the packet engine, loaded and attached.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use rustix::thread::{MembarrierCommand, membarrier};
use snisplit_common::abi::packet::{
    CONTROL_PROGRAM, ControlCommand, FlowEntry, FlowState, PACKET_ABI_MAP, PACKET_ABI_VERSION,
    PACKET_COUNTERS_MAP, PACKET_EVENTS_MAP, PACKET_FLOWS_MAP, PACKET_INTERFACES_MAP,
    PACKET_ROUTES_MAP, PACKET_TUPLES_MAP, PacketCounter, RESET_REQUESTS_MAP, SYN_CLAMP_MAP, Tuple,
    XMIT_XDP,
};
use tokio::sync::Notify;

use super::address::tuple;
use super::layout::{Plain as _, TupleBytes, encode};
use super::routes::Routes;
use super::{KernelError, offsets, pinned};

mod drivers;
mod events;
mod links;
mod migrate;
mod places;
mod records;
mod slots;

pub(crate) use events::Events;
pub(crate) use links::{Hook, Link};
pub(crate) use migrate::migrate;
pub(crate) use places::leave;
use records::Records;
pub(super) use records::slots;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snisplit-packet"));

/// The maps that outlive the agent, so that flows do; people may look at them too.
const PINNED: [&str; 7] = [
    PACKET_ABI_MAP,
    PACKET_FLOWS_MAP,
    PACKET_TUPLES_MAP,
    PACKET_ROUTES_MAP,
    PACKET_COUNTERS_MAP,
    RESET_REQUESTS_MAP,
    PACKET_INTERFACES_MAP,
];

/// Whether a pin of this name is the packet engine's.
pub(crate) fn is_ours(name: &str) -> bool {
    PINNED.contains(&name) || links::is_ours(name)
}

/// The programs at their interfaces. Dropping it detaches them.
pub(crate) struct Splicer {
    records: Records,
    maps: Mutex<Maps>,
    interfaces: Mutex<HashMap<MapData, u32, u32>>,
    in_drivers: Vec<u32>,
    counters: PerCpuArray<MapData, u64>,
    routes: Mutex<Routes>,
    loaded: Mutex<Ebpf>,
    /// Told when there is something to [`erase`](Self::erase).
    pub(crate) has_gone: Notify,
}

struct Maps {
    offers: HashMap<MapData, TupleBytes, u32>,
    cuts: HashMap<MapData, u64, u32>,
}

impl Splicer {
    /// Loads, and attaches to these interfaces. What another agent has left in `pins`, a folder of a
    /// bpffs, is taken over: flows, and places at interfaces.
    pub(crate) fn load(
        (links, hook): (&[Link], Hook),
        pins: Option<&Path>,
    ) -> Result<(Self, Events), KernelError> {
        if hook == Hook::Tcx && Hook::of_this_kernel() != Hook::Tcx {
            return Err(KernelError::NoTcx);
        }
        if let Some(folder) = pins {
            ensure_abi(folder)?;
        }
        let offsets = offsets::of_sockets()?;
        let mut loader = EbpfLoader::new();
        for (name, folder) in PINNED.iter().zip(pins.into_iter().cycle()) {
            loader.map_pin_path(name, folder.join(name));
        }
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let mut take = |name| ebpf.take_map(name).ok_or(KernelError::Missing(name));
        let mut abi: Array<MapData, u32> = take(PACKET_ABI_MAP)?.try_into()?;
        abi.set(0, PACKET_ABI_VERSION, 0)?;
        let events = Events::of(take(PACKET_EVENTS_MAP)?)?;
        let counters = take(PACKET_COUNTERS_MAP)?.try_into()?;
        let routes = Mutex::new(Routes::new(take(PACKET_ROUTES_MAP)?.try_into()?));
        let records = Records::new(take(PACKET_FLOWS_MAP)?, take(PACKET_TUPLES_MAP)?)?;
        let maps = Maps {
            offers: take(SYN_CLAMP_MAP)?.try_into()?,
            cuts: take(RESET_REQUESTS_MAP)?.try_into()?,
        };
        let mut interfaces: HashMap<_, u32, u32> = take(PACKET_INTERFACES_MAP)?.try_into()?;
        let before = places::write_down(links, &mut interfaces)?;
        places::attach(&mut ebpf, (links, hook), pins)?;
        let in_drivers = drivers::attach(&mut ebpf, links, pins)?;
        places::leave_others((links, hook), &before, pins, &mut interfaces);
        let (maps, loaded, interfaces) = (maps.into(), ebpf.into(), interfaces.into());
        let has_gone = Notify::new();
        Ok((
            Self { records, maps, interfaces, in_drivers, counters, routes, loaded, has_gone },
            events,
        ))
    }

    /// The interfaces in whose drivers the program is.
    pub(crate) fn in_drivers(&self) -> &[u32] {
        &self.in_drivers
    }

    /// Has other drivers send frames by this interface, whose own takes them.
    pub(crate) fn send_by_driver(&self, number: u32) -> Result<(), KernelError> {
        let mut interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(interfaces.insert(number, XMIT_XDP, 0)?)
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what SYNs to this back end from this port of ours offer; 0 leaves them alone again.
    pub(crate) fn offer(&self, to: SocketAddr, port: u16, offered: u32) -> Result<(), KernelError> {
        let tuple = encode(&Tuple { destination: [0; 16], ..tuple(to, ([0; 4], port).into()) });
        let offers = &mut self.maps().offers;
        match offered {
            0 => Ok(offers.remove(&tuple)?),
            _ => Ok(offers.insert(tuple, offered, 0)?),
        }
    }

    /// Arms a flow: from now on the programs know its packets. It is to be removed even if this fails.
    pub(crate) fn arm(&self, number: u64, splice: &FlowEntry) -> Result<(), KernelError> {
        Ok(self.records.arm(number, splice)?)
    }

    /// What a flow has come to.
    pub(crate) fn splice(&self, number: u64) -> Option<FlowEntry> {
        self.records.get(number)
    }

    /// All flows.
    pub(crate) fn splices(&self) -> Vec<(u64, FlowEntry)> {
        self.records.all()
    }

    /// Flows that somebody wants cut; each is told once.
    pub(crate) fn cuts(&self) -> Vec<u64> {
        let cuts = &mut self.maps().cuts;
        let numbers: Vec<u64> = cuts.keys().flatten().collect();
        numbers.iter().for_each(|number| _ = cuts.remove(number));
        numbers
    }

    /// Forgets a flow: its packets are strangers again. The answer is what it had come to. What is left of it
    /// waits for [`Self::erase`].
    pub(crate) fn remove(&self, number: u64) -> Option<FlowEntry> {
        let mut splice = self.splice(number)?;
        if !(splice.state == FlowState::Fallback || splice.state.is_terminal()) {
            // Switching takes as long as a program does.
            while self
                .ask(number, ControlCommand::Release)
                .is_ok_and(|state| state == FlowState::TakingOver)
            {
                thread::yield_now();
            }
            splice = self.splice(number)?;
        }
        self.records.part(number, &splice);
        self.has_gone.notify_one();
        Some(splice)
    }

    /// The same of a flow whose packets are another one's by now.
    pub(crate) fn discard(&self, number: u64) {
        self.records.leave(number);
        self.has_gone.notify_one();
    }

    /// Erases what is left of flows that were forgotten, once no program has it any more. Takes its time: of
    /// an RCU grace period, some 30 ms.
    pub(crate) fn erase(&self) {
        let gone = self.records.gone();
        // membarrier(2): waits for all that runs, in soft interrupts too (synchronize_rcu).
        if membarrier(MembarrierCommand::Global).is_err() {
            // Not with nohz_full. No packet takes as long as this.
            thread::sleep(Duration::from_secs(1));
        }
        self.records.erase(&gone);
    }

    /// Leaves a flow to its sockets, if the kernel has not taken it. What it is now.
    pub(crate) fn settle(&self, number: u64) -> Result<FlowState, KernelError> {
        self.ask(number, ControlCommand::Fallback)
    }

    fn ask(&self, number: u64, wish: ControlCommand) -> Result<FlowState, KernelError> {
        let mut packet = [0_u8; 64]; // Nothing is run without an Ethernet header in front.
        let slot = self.records.slot(number).unwrap_or(u32::MAX); // Nobody's, of one that is gone.
        packet[14..22].copy_from_slice(&u64::from(slot).to_ne_bytes());
        packet[22..30].copy_from_slice(&(wish as u64).to_ne_bytes());
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let program = program(&mut loaded, CONTROL_PROGRAM)?;
        let run = program.test_run(TestRunOptions { data_in: Some(&packet), ..Default::default() });
        Ok(FlowState::get(&u64::from(run?.return_value).to_ne_bytes()))
    }

    /// The number of a route of this name; 0 if there is no more room for it.
    pub(crate) fn route(&self, name: &str) -> u32 {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).number(name)
    }

    /// The name of a route, by its number.
    pub(crate) fn route_name(&self, number: u32) -> Option<String> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).name(number)
    }

    /// A counter, summed over all CPUs.
    pub(crate) fn count(&self, fate: PacketCounter) -> Result<u64, KernelError> {
        Ok(self.counters.get(&(fate as u32), 0)?.iter().sum())
    }
}

fn ensure_abi(folder: &Path) -> Result<(), KernelError> {
    if !folder.join(PACKET_ABI_MAP).exists() {
        return Ok(());
    }
    match pinned::version(folder, PACKET_ABI_MAP)? {
        // One that was killed before it said so has no flows.
        0 | PACKET_ABI_VERSION => Ok(()),
        other => Err(KernelError::PacketAbi(other, folder.display().to_string())),
    }
}

fn program<'e>(
    ebpf: &'e mut Ebpf,
    name: &'static str,
) -> Result<&'e mut SchedClassifier, KernelError> {
    Ok(ebpf.program_mut(name).ok_or(KernelError::Missing(name))?.try_into()?)
}
