//! The programs and the maps of the packet engine.

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

/// The loaded and attached programs. Dropping it detaches those that are not pinned.
pub(crate) struct PacketPrograms {
    flow_table: FlowTable,
    maps: Mutex<Maps>,
    interfaces: Mutex<HashMap<MapData, u32, u32>>,
    xdp_interfaces: Vec<u32>,
    counters: PerCpuArray<MapData, u64>,
    route_names: Mutex<RouteNames>,
    loaded: Mutex<Ebpf>,
    /// Notified when there are flows to [`reclaim`](Self::reclaim).
    pub(crate) retired: Notify,
}

struct Maps {
    syn_clamps: HashMap<MapData, TupleBytes, u32>,
    reset_requests: HashMap<MapData, u64, u32>,
}

impl PacketPrograms {
    /// Loads the programs and attaches them. `pins` is a folder of a bpffs: this adopts the flows and
    /// attachments that a previous agent has left there.
    ///
    /// # Errors
    /// Fails if the kernel rejects a program, if an interface does not accept one, or if the pins have
    /// another ABI version.
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

    /// Indices of the interfaces that the XDP program is attached to.
    pub(crate) fn xdp_interfaces(&self) -> &[u32] {
        &self.xdp_interfaces
    }

    /// Lets the XDP program redirect frames to this interface, whose driver accepts frames of others.
    ///
    /// # Errors
    /// Fails if the kernel does not update the map.
    pub(crate) fn enable_xdp_xmit(&self, ifindex: u32) -> Result<(), BpfError> {
        let mut interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(interfaces.insert(ifindex, XMIT_XDP, 0)?)
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Limits the options of SYNs to a back end from a port of this host. 0 removes the limits.
    ///
    /// # Errors
    /// Fails if the map is full, or has no such entry to remove.
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

    /// Inserts a pending flow, whose packets the programs then recognize. Remove the flow even if this fails.
    ///
    /// # Errors
    /// Fails if the table is full.
    pub(crate) fn insert_flow(&self, flow_id: u64, entry: &FlowEntry) -> Result<(), BpfError> {
        Ok(self.flow_table.insert(flow_id, entry)?)
    }

    /// Returns the present entry of a flow.
    pub(crate) fn flow_entry(&self, flow_id: u64) -> Option<FlowEntry> {
        self.flow_table.get(flow_id)
    }

    /// Returns the IDs and entries of all flows.
    pub(crate) fn flow_entries(&self) -> Vec<(u64, FlowEntry)> {
        self.flow_table.all()
    }

    /// Returns the IDs of the flows to reset, and removes the requests.
    pub(crate) fn take_reset_requests(&self) -> Vec<u64> {
        let requests = &mut self.maps().reset_requests;
        let flow_ids: Vec<u64> = requests.keys().flatten().collect();
        flow_ids.iter().for_each(|flow_id| _ = requests.remove(flow_id));
        flow_ids
    }

    /// Removes a flow, so that the programs do not recognize its packets, and returns its last entry. The slot
    /// stays in use until [`reclaim`](Self::reclaim).
    pub(crate) fn remove_flow(&self, flow_id: u64) -> Option<FlowEntry> {
        let mut entry = self.flow_entry(flow_id)?;
        if !(entry.state == FlowState::Fallback || entry.state.is_terminal()) {
            // A takeover ends when the program returns.
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

    /// Removes a flow whose tuples belong to another flow already.
    pub(crate) fn retire(&self, flow_id: u64) {
        self.flow_table.retire(flow_id);
        self.retired.notify_one();
    }

    /// Frees the slots of removed flows, after the programs that use them have returned. This blocks for an
    /// RCU grace period, about 30 ms.
    pub(crate) fn reclaim(&self) {
        let retired = self.flow_table.take_retired();
        // membarrier(2) waits for all running code, including softirqs (synchronize_rcu).
        if membarrier(MembarrierCommand::Global).is_err() {
            // The kernel rejects it with nohz_full. No program runs for as long as this.
            thread::sleep(Duration::from_secs(1));
        }
        self.flow_table.reclaim(&retired);
    }

    /// Keeps a pending flow with its sockets, and returns the state of the flow.
    ///
    /// # Errors
    /// Fails if the control program cannot run.
    pub(crate) fn force_fallback(&self, flow_id: u64) -> Result<FlowState, BpfError> {
        self.run_command(flow_id, ControlCommand::Fallback)
    }

    fn run_command(&self, flow_id: u64, command: ControlCommand) -> Result<FlowState, BpfError> {
        // The kernel requires an Ethernet header.
        let mut packet = [0_u8; 64];
        // No flow has the largest slot, so the command does nothing for a removed flow.
        let slot = self.flow_table.slot_of(flow_id).unwrap_or(u32::MAX);
        packet[14..22].copy_from_slice(&u64::from(slot).to_ne_bytes());
        packet[22..30].copy_from_slice(&(command as u64).to_ne_bytes());
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let program = attach::tc_program(&mut loaded, CONTROL_PROGRAM)?;
        let run = program.test_run(TestRunOptions { data_in: Some(&packet), ..Default::default() });
        let state = decode(&u64::from(run?.return_value).to_ne_bytes());
        Ok(state.unwrap_or(FlowState::Fallback))
    }

    /// Returns the ID of a route's name, a new one if necessary. 0: the map is full.
    pub(crate) fn route_id(&self, name: &str) -> u32 {
        self.route_names.lock().unwrap_or_else(PoisonError::into_inner).intern(name)
    }

    /// Returns the name of a route by its ID.
    pub(crate) fn route_name(&self, id: u32) -> Option<String> {
        self.route_names.lock().unwrap_or_else(PoisonError::into_inner).name(id)
    }

    /// Returns a counter, summed over all CPUs.
    ///
    /// # Errors
    /// Fails if the kernel does not let the map be read.
    pub(crate) fn counter(&self, counter: PacketCounter) -> Result<u64, BpfError> {
        Ok(self.counters.get(&(counter as u32), 0)?.iter().sum())
    }
}

fn ensure_abi_version(dir: &Path) -> Result<(), BpfError> {
    if !dir.join(PACKET_ABI_MAP).exists() {
        return Ok(());
    }
    match inspect::abi_version(dir, PACKET_ABI_MAP)? {
        // 0: the agent was killed before it wrote the version, so it has no flows.
        0 | PACKET_ABI_VERSION => Ok(()),
        other => Err(BpfError::PacketAbiVersion(other, dir.display().to_string())),
    }
}
