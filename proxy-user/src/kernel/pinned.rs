//! What an instance has pinned, read from outside: also while its agent is stopped or hangs.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use snisplit_common::abi::packet::{
    FlowEntry, FlowState, PACKET_ABI_MAP, PACKET_ABI_VERSION, PACKET_COUNTERS_MAP,
    PACKET_FLOWS_MAP, PACKET_INTERFACES_MAP, PACKET_ROUTES_MAP, PACKET_TUPLES_MAP, PacketCounter,
    RESET_REQUESTS_MAP,
};
use snisplit_common::abi::{
    ABI_MAP, ABI_VERSION, COUNTERS_MAP, DirectionEntry, FLOWS_MAP, ROUTES_MAP, SockmapCounter,
};

use super::KernelError;
use super::layout::{FlowBytes, LegBytes, Plain as _, SpliceBytes, TupleBytes};
use super::packet::slots;
use super::routes::{Name, text};

/// The maps of an instance as they are at this instant, of the engines that it has.
#[derive(Debug, Default)]
pub(crate) struct Pinned {
    pub(crate) sockmap: Option<Sockmap>,
    pub(crate) packet: Option<Packet>,
}

/// Those of the sockmap engine.
#[derive(Debug)]
pub(crate) struct Sockmap {
    /// Directions by the cookie of the socket that receives.
    pub(crate) flows: BTreeMap<u64, DirectionEntry>,
    routes: BTreeMap<u32, String>,
    counters: Vec<u64>,
}

/// Those of the packet engine.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) flows: BTreeMap<u64, FlowEntry>,
    routes: BTreeMap<u32, String>,
    counters: Vec<u64>,
}

impl Pinned {
    /// Reads all of them. Entries that come and go meanwhile may be missed.
    pub(crate) fn read(folder: &Path) -> Result<Self, KernelError> {
        let sockmap = folder.join(ABI_MAP).exists().then(|| Sockmap::read(folder));
        let packet = folder.join(PACKET_ABI_MAP).exists().then(|| Packet::read(folder));
        Ok(Self { sockmap: sockmap.transpose()?, packet: packet.transpose()? })
    }
}

impl Sockmap {
    fn read(folder: &Path) -> Result<Self, KernelError> {
        match version(folder, ABI_MAP)? {
            ABI_VERSION => {}
            other => return Err(KernelError::Abi(other)),
        }
        let flows = HashMap::try_from(Map::HashMap(pin(folder, FLOWS_MAP)?))?;
        let flow = |(cookie, bytes): (u64, FlowBytes)| (cookie, DirectionEntry::get(&bytes));
        Ok(Self {
            flows: flows.iter().flatten().map(flow).collect(),
            routes: routes(folder, ROUTES_MAP)?,
            counters: counters(folder, COUNTERS_MAP)?,
        })
    }

    /// The name of a flow's route.
    pub(crate) fn route(&self, flow: &DirectionEntry) -> &str {
        self.routes.get(&flow.route_id).map_or("?", String::as_str)
    }

    pub(crate) fn count(&self, count: SockmapCounter) -> u64 {
        self.counters.get(count as usize).copied().unwrap_or_default()
    }
}

impl Packet {
    fn read(folder: &Path) -> Result<Self, KernelError> {
        match version(folder, PACKET_ABI_MAP)? {
            PACKET_ABI_VERSION => {}
            other => return Err(KernelError::PacketAbi(other, folder.display().to_string())),
        }
        let records: Array<_, SpliceBytes> =
            Map::Array(pin(folder, PACKET_FLOWS_MAP)?).try_into()?;
        let tuples: HashMap<_, TupleBytes, LegBytes> =
            Map::HashMap(pin(folder, PACKET_TUPLES_MAP)?).try_into()?;
        let flow = |(number, slot)| Some((number, FlowEntry::get(&records.get(&slot, 0).ok()?)));
        // What stays with its sockets is theirs, and only waits to be erased; it may be another's by now.
        let is_its = |(number, splice): &(u64, FlowEntry)| {
            splice.id == *number && splice.state != FlowState::Fallback
        };
        Ok(Self {
            flows: slots(&tuples).into_iter().filter_map(flow).filter(is_its).collect(),
            routes: routes(folder, PACKET_ROUTES_MAP)?,
            // None between a migration and the next agent.
            counters: match folder.join(PACKET_COUNTERS_MAP).exists() {
                true => counters(folder, PACKET_COUNTERS_MAP)?,
                false => Vec::new(),
            },
        })
    }

    /// The name of a flow's route.
    pub(crate) fn route(&self, flow: &FlowEntry) -> &str {
        self.routes.get(&flow.route_id).map_or("?", String::as_str)
    }

    pub(crate) fn count(&self, fate: PacketCounter) -> u64 {
        self.counters.get(fate as usize).copied().unwrap_or_default()
    }
}

/// Has the packet engine's programs let out what this host says to the peers of flows.
pub(crate) fn forget_flows(folder: &Path) -> Result<(), KernelError> {
    let mut tuples: HashMap<MapData, TupleBytes, LegBytes> =
        Map::HashMap(pin(folder, PACKET_TUPLES_MAP)?).try_into()?;
    let all: Vec<TupleBytes> = tuples.keys().flatten().collect();
    for tuple in all {
        let _gone_already = tuples.remove(&tuple);
    }
    Ok(())
}

/// The numbers of the interfaces that the packet engine's programs are at.
pub(super) fn interfaces(folder: &Path) -> Result<Vec<u32>, KernelError> {
    let map: HashMap<MapData, u32, u32> =
        Map::HashMap(pin(folder, PACKET_INTERFACES_MAP)?).try_into()?;
    Ok(map.keys().flatten().collect())
}

/// Asks the agent to cut flows of the packet engine.
pub(crate) fn ask_to_cut(folder: &Path, numbers: &[u64]) -> Result<(), KernelError> {
    let mut cuts: HashMap<MapData, u64, u32> =
        Map::HashMap(pin(folder, RESET_REQUESTS_MAP)?).try_into()?;
    Ok(numbers.iter().try_for_each(|number| cuts.insert(number, 1, 0))?)
}

pub(super) fn pin(folder: &Path, name: &str) -> Result<MapData, KernelError> {
    Ok(MapData::from_pin(folder.join(name))?)
}

/// The version that the pins of an engine are of.
pub(super) fn version(folder: &Path, name: &str) -> Result<u32, KernelError> {
    let abi: Array<MapData, u32> = Map::Array(pin(folder, name)?).try_into()?;
    Ok(abi.get(&0, 0)?)
}

fn routes(folder: &Path, name: &str) -> Result<BTreeMap<u32, String>, KernelError> {
    let routes: HashMap<MapData, u32, Name> = Map::HashMap(pin(folder, name)?).try_into()?;
    Ok(routes.iter().flatten().map(|(key, name)| (key, text(&name))).collect())
}

/// Each summed over all CPUs.
fn counters(folder: &Path, name: &str) -> Result<Vec<u64>, KernelError> {
    let counters: PerCpuArray<MapData, u64> = Map::PerCpuArray(pin(folder, name)?).try_into()?;
    let summed = |slot| Ok(counters.get(&slot, 0)?.iter().sum());
    (0..counters.len()).map(summed).collect()
}
