//! The programs of the packet engine, loaded and attached.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use rustix::thread::{MembarrierCommand, membarrier};
use snisplit_common::abi::PACKET_ABI_VERSION;
use snisplit_common::abi::packet::{
    CONTROL_PROGRAM, ControlCommand, FlowEntry, FlowState, PACKET_ABI_MAP, PACKET_COUNTERS_MAP,
    PACKET_EVENTS_MAP, PACKET_FLOWS_MAP, PACKET_INTERFACES_MAP, PACKET_ROUTES_MAP,
    PACKET_TUPLES_MAP, PacketCounter, RESET_REQUESTS_MAP, SYN_CLAMP_MAP, Tuple, XMIT_XDP,
};
use tokio::sync::Notify;

use super::address::ingress_tuple;
use super::codec::{TupleBytes, decode, encode};
use super::error::BpfError;
use super::route_names::RouteNames;
use super::{btf_offsets, inspect};

mod attach;
mod events;
mod flow_table;
mod migrate;
mod pins;
mod slot_allocator;

pub(crate) use attach::{AttachPlan, AttachTarget, Hook, detach_all};
pub(crate) use events::FlowEvents;
use flow_table::FlowTable;
pub(super) use flow_table::slots_by_flow;
pub(crate) use migrate::migrate;
pub(super) use pins::OLD_INTERFACES_PIN;
use pins::PINNED_MAPS;
pub(crate) use pins::is_own_pin;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snisplit-packet"));

/// The programs at their interfaces. Dropping it detaches them.
pub(crate) struct PacketPrograms {
    flow_table: FlowTable,
    maps: Mutex<Maps>,
    interfaces: Mutex<HashMap<MapData, u32, u32>>,
    xdp_interfaces: Vec<u32>,
    counters: PerCpuArray<MapData, u64>,
    route_names: Mutex<RouteNames>,
    loaded: Mutex<Ebpf>,
    /// Told when there is something to [`erase`](Self::reclaim).
    pub(crate) retired: Notify,
}

struct Maps {
    syn_clamps: HashMap<MapData, TupleBytes, u32>,
    reset_requests: HashMap<MapData, u64, u32>,
}

impl PacketPrograms {
    /// Loads, and attaches to these interfaces. What another agent has left in `pins`, a folder of a
    /// bpffs, is taken over: flows, and places at interfaces.
    pub(crate) fn load(
        plan: &AttachPlan,
        pins: Option<&Path>,
    ) -> Result<(Self, FlowEvents), BpfError> {
        if let Some(folder) = pins {
            ensure_abi_version(folder)?;
        }
        let offsets = btf_offsets::packet_offsets()?;
        let mut loader = EbpfLoader::new();
        for (name, folder) in PINNED_MAPS.iter().zip(pins.into_iter().cycle()) {
            loader.map_pin_path(name, folder.join(name));
        }
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let mut take_map = |name| ebpf.take_map(name).ok_or(BpfError::MissingFromObject(name));
        let mut abi: Array<MapData, u32> = take_map(PACKET_ABI_MAP)?.try_into()?;
        abi.set(0, PACKET_ABI_VERSION, 0)?;
        let events = FlowEvents::new(take_map(PACKET_EVENTS_MAP)?)?;
        let counters = take_map(PACKET_COUNTERS_MAP)?.try_into()?;
        let route_names = Mutex::new(RouteNames::new(take_map(PACKET_ROUTES_MAP)?.try_into()?));
        let flow_table = FlowTable::new(take_map(PACKET_FLOWS_MAP)?, take_map(PACKET_TUPLES_MAP)?)?;
        let maps = Maps {
            syn_clamps: take_map(SYN_CLAMP_MAP)?.try_into()?,
            reset_requests: take_map(RESET_REQUESTS_MAP)?.try_into()?,
        };
        let mut interfaces: HashMap<_, u32, u32> = take_map(PACKET_INTERFACES_MAP)?.try_into()?;
        let previous = attach::record_interfaces(plan, &mut interfaces)?;
        attach::load_and_attach_tc(&mut ebpf, plan, pins)?;
        let xdp_interfaces = attach::load_and_attach_xdp(&mut ebpf, plan, pins)?;
        attach::detach_unlisted(plan, &previous, pins, &mut interfaces);
        let (maps, loaded, interfaces) = (maps.into(), ebpf.into(), interfaces.into());
        let retired = Notify::new();
        Ok((
            Self {
                flow_table,
                maps,
                interfaces,
                xdp_interfaces,
                counters,
                route_names,
                loaded,
                retired,
            },
            events,
        ))
    }

    /// The interfaces in whose drivers the program is.
    pub(crate) fn xdp_interfaces(&self) -> &[u32] {
        &self.xdp_interfaces
    }

    /// Has other drivers send frames by this interface, whose own takes them.
    pub(crate) fn enable_xdp_xmit(&self, ifindex: u32) -> Result<(), BpfError> {
        let mut interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(interfaces.insert(ifindex, XMIT_XDP, 0)?)
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what SYNs to this back end from this port of ours offer; 0 leaves them alone again.
    pub(crate) fn set_syn_clamp(
        &self,
        backend: SocketAddr,
        local_port: u16,
        clamp: u32,
    ) -> Result<(), BpfError> {
        let tuple = encode(&Tuple {
            destination: [0; 16],
            ..ingress_tuple(backend, ([0; 4], local_port).into())
        });
        let syn_clamps = &mut self.maps().syn_clamps;
        match clamp {
            0 => Ok(syn_clamps.remove(&tuple)?),
            _ => Ok(syn_clamps.insert(tuple, clamp, 0)?),
        }
    }

    /// Arms a flow: from now on the programs know its packets. It is to be removed even if this fails.
    pub(crate) fn insert_flow(&self, flow_id: u64, entry: &FlowEntry) -> Result<(), BpfError> {
        Ok(self.flow_table.insert(flow_id, entry)?)
    }

    /// What a flow has come to.
    pub(crate) fn flow_entry(&self, flow_id: u64) -> Option<FlowEntry> {
        self.flow_table.get(flow_id)
    }

    /// All flows.
    pub(crate) fn flow_entries(&self) -> Vec<(u64, FlowEntry)> {
        self.flow_table.all()
    }

    /// Flows that somebody wants cut; each is told once.
    pub(crate) fn take_reset_requests(&self) -> Vec<u64> {
        let requests = &mut self.maps().reset_requests;
        let flow_ids: Vec<u64> = requests.keys().flatten().collect();
        flow_ids.iter().for_each(|flow_id| _ = requests.remove(flow_id));
        flow_ids
    }

    /// Forgets a flow: its packets are strangers again. The answer is what it had come to. What is left of it
    /// waits for [`Self::reclaim`].
    pub(crate) fn remove_flow(&self, flow_id: u64) -> Option<FlowEntry> {
        let mut entry = self.flow_entry(flow_id)?;
        if !(entry.state == FlowState::Fallback || entry.state.is_terminal()) {
            // Switching takes as long as a program does.
            while self
                .run_command(flow_id, ControlCommand::Release)
                .is_ok_and(|state| state == FlowState::TakingOver)
            {
                thread::yield_now();
            }
            entry = self.flow_entry(flow_id)?;
        }
        self.flow_table.unlink(flow_id, &entry);
        self.retired.notify_one();
        Some(entry)
    }

    /// The same of a flow whose packets are another one's by now.
    pub(crate) fn retire(&self, flow_id: u64) {
        self.flow_table.retire(flow_id);
        self.retired.notify_one();
    }

    /// Erases what is left of flows that were forgotten, once no program has it any more. Takes its time: of
    /// an RCU grace period, some 30 ms.
    pub(crate) fn reclaim(&self) {
        let retired = self.flow_table.take_retired();
        // membarrier(2): waits for all that runs, in soft interrupts too (synchronize_rcu).
        if membarrier(MembarrierCommand::Global).is_err() {
            // Not with nohz_full. No packet takes as long as this.
            thread::sleep(Duration::from_secs(1));
        }
        self.flow_table.reclaim(&retired);
    }

    /// Leaves a flow to its sockets, if the kernel has not taken it. What it is now.
    pub(crate) fn force_fallback(&self, flow_id: u64) -> Result<FlowState, BpfError> {
        self.run_command(flow_id, ControlCommand::Fallback)
    }

    fn run_command(&self, flow_id: u64, command: ControlCommand) -> Result<FlowState, BpfError> {
        let mut packet = [0_u8; 64]; // Nothing is run without an Ethernet header in front.
        let slot = self.flow_table.slot_of(flow_id).unwrap_or(u32::MAX); // Nobody's, of one that is gone.
        packet[14..22].copy_from_slice(&u64::from(slot).to_ne_bytes());
        packet[22..30].copy_from_slice(&(command as u64).to_ne_bytes());
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let program = attach::tc_program(&mut loaded, CONTROL_PROGRAM)?;
        let run = program.test_run(TestRunOptions { data_in: Some(&packet), ..Default::default() });
        let state = decode(&u64::from(run?.return_value).to_ne_bytes());
        Ok(state.unwrap_or(FlowState::Fallback))
    }

    /// The number of a route of this name; 0 if there is no more room for it.
    pub(crate) fn route_id(&self, name: &str) -> u32 {
        self.route_names.lock().unwrap_or_else(PoisonError::into_inner).intern(name)
    }

    /// The name of a route, by its number.
    pub(crate) fn route_name(&self, id: u32) -> Option<String> {
        self.route_names.lock().unwrap_or_else(PoisonError::into_inner).name(id)
    }

    /// A counter, summed over all CPUs.
    pub(crate) fn counter(&self, counter: PacketCounter) -> Result<u64, BpfError> {
        Ok(self.counters.get(&(counter as u32), 0)?.iter().sum())
    }
}

fn ensure_abi_version(dir: &Path) -> Result<(), BpfError> {
    if !dir.join(PACKET_ABI_MAP).exists() {
        return Ok(());
    }
    match inspect::abi_version(dir, PACKET_ABI_MAP)? {
        // One that was killed before it said so has no flows.
        0 | PACKET_ABI_VERSION => Ok(()),
        other => Err(BpfError::PacketAbiVersion(other, dir.display().to_string())),
    }
}
