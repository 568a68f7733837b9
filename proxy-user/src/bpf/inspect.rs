//! Reads and writes the pinned maps of an instance from another process. This works while the agent is
//! stopped or hangs.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use snisplit_common::abi::packet::{
    FlowEntry, FlowState, PACKET_ABI_MAP, PACKET_COUNTERS_MAP, PACKET_FLOWS_MAP,
    PACKET_INTERFACES_MAP, PACKET_ROUTES_MAP, PACKET_TUPLES_MAP, PacketCounter, RESET_REQUESTS_MAP,
};
use snisplit_common::abi::sockmap::{
    ABI_MAP, COUNTERS_MAP, DirectionEntry, FLOWS_MAP, ROUTES_MAP, SockmapCounter,
};
use snisplit_common::abi::{PACKET_ABI_VERSION, SOCKMAP_ABI_VERSION};

use super::codec::{FlowBytes, FlowEntryBytes, TupleBytes, TupleEntryBytes, decode};
use super::error::BpfError;
use super::packet::{OLD_INTERFACES_PIN, slots_by_flow};
use super::route_names::{RouteNameBytes, decode_name};

/// Content of the pinned maps of an instance, for the engines that it has.
#[derive(Debug, Default)]
pub(crate) struct PinnedState {
    pub(crate) sockmap: Option<SockmapState>,
    pub(crate) packet: Option<PacketState>,
}

/// Content of the maps of the sockmap engine.
#[derive(Debug)]
pub(crate) struct SockmapState {
    /// Directions, by the cookie of the receiving socket.
    pub(crate) flows: BTreeMap<u64, DirectionEntry>,
    routes: BTreeMap<u32, String>,
    counters: Vec<u64>,
}

/// Content of the maps of the packet engine.
#[derive(Debug)]
pub(crate) struct PacketState {
    /// Flows that the programs carry or are about to, by ID.
    pub(crate) flows: BTreeMap<u64, FlowEntry>,
    routes: BTreeMap<u32, String>,
    counters: Vec<u64>,
}

impl PinnedState {
    /// Reads all maps. It may miss entries that are inserted or removed meanwhile.
    ///
    /// # Errors
    /// Fails if a map is not readable, or if the pins have another ABI version.
    pub(crate) fn read(dir: &Path) -> Result<Self, BpfError> {
        let sockmap = dir.join(ABI_MAP).exists().then(|| SockmapState::read(dir));
        let packet = dir.join(PACKET_ABI_MAP).exists().then(|| PacketState::read(dir));
        Ok(Self { sockmap: sockmap.transpose()?, packet: packet.transpose()? })
    }
}

impl SockmapState {
    fn read(dir: &Path) -> Result<Self, BpfError> {
        match abi_version(dir, ABI_MAP)? {
            SOCKMAP_ABI_VERSION => {}
            other => return Err(BpfError::AbiVersion(other)),
        }
        let flows = HashMap::try_from(Map::HashMap(open_map(dir, FLOWS_MAP)?))?;
        let flow = |(cookie, bytes): (u64, FlowBytes)| Some((cookie, decode(&bytes)?));
        Ok(Self {
            flows: flows.iter().flatten().filter_map(flow).collect(),
            routes: read_route_names(dir, ROUTES_MAP)?,
            counters: read_counters(dir, COUNTERS_MAP)?,
        })
    }

    /// Returns the name of a flow's route.
    pub(crate) fn route(&self, flow: &DirectionEntry) -> &str {
        self.routes.get(&flow.route_id).map_or("?", String::as_str)
    }

    /// Returns a counter, summed over all CPUs.
    pub(crate) fn counter(&self, counter: SockmapCounter) -> u64 {
        self.counters.get(counter as usize).copied().unwrap_or_default()
    }
}

impl PacketState {
    fn read(dir: &Path) -> Result<Self, BpfError> {
        match abi_version(dir, PACKET_ABI_MAP)? {
            PACKET_ABI_VERSION => {}
            other => return Err(BpfError::PacketAbiVersion(other, dir.display().to_string())),
        }
        let entries: Array<_, FlowEntryBytes> =
            Map::Array(open_map(dir, PACKET_FLOWS_MAP)?).try_into()?;
        let tuples: HashMap<_, TupleBytes, TupleEntryBytes> =
            Map::HashMap(open_map(dir, PACKET_TUPLES_MAP)?).try_into()?;
        let flow = |(flow_id, slot)| Some((flow_id, decode(&entries.get(&slot, 0).ok()?)?));
        // A flow in fallback belongs to its sockets, and another flow may have its slot already.
        let is_current = |(flow_id, entry): &(u64, FlowEntry)| {
            entry.id == *flow_id && entry.state != FlowState::Fallback
        };
        Ok(Self {
            flows: slots_by_flow(&tuples).into_iter().filter_map(flow).filter(is_current).collect(),
            routes: read_route_names(dir, PACKET_ROUTES_MAP)?,
            // Between a migration and the start of the next agent there are no counters.
            counters: match dir.join(PACKET_COUNTERS_MAP).exists() {
                true => read_counters(dir, PACKET_COUNTERS_MAP)?,
                false => Vec::new(),
            },
        })
    }

    /// Returns the name of a flow's route.
    pub(crate) fn route_name(&self, flow: &FlowEntry) -> &str {
        self.routes.get(&flow.route_id).map_or("?", String::as_str)
    }

    /// Returns a counter, summed over all CPUs.
    pub(crate) fn counter(&self, counter: PacketCounter) -> u64 {
        self.counters.get(counter as usize).copied().unwrap_or_default()
    }
}

/// Removes all tuples of the packet engine. Without tuples, its programs do not drop what this host sends to
/// the peers of flows.
///
/// # Errors
/// Fails if the map is not readable.
pub(crate) fn remove_tuples(dir: &Path) -> Result<(), BpfError> {
    let mut tuples: HashMap<MapData, TupleBytes, TupleEntryBytes> =
        Map::HashMap(open_map(dir, PACKET_TUPLES_MAP)?).try_into()?;
    let all: Vec<TupleBytes> = tuples.keys().flatten().collect();
    for tuple in all {
        let _already_removed = tuples.remove(&tuple);
    }
    Ok(())
}

/// Returns the indices of the interfaces that the packet engine's programs are attached to.
///
/// # Errors
/// Fails if the map is not readable.
pub(super) fn attached_interfaces(dir: &Path) -> Result<Vec<u32>, BpfError> {
    let map =
        open_map(dir, PACKET_INTERFACES_MAP).or_else(|_| open_map(dir, OLD_INTERFACES_PIN))?;
    let map: HashMap<MapData, u32, u32> = Map::HashMap(map).try_into()?;
    Ok(map.keys().flatten().collect())
}

/// Requests the agent to reset flows of the packet engine.
///
/// # Errors
/// Fails if the map does not exist or is full.
pub(crate) fn request_resets(dir: &Path, flow_ids: &[u64]) -> Result<(), BpfError> {
    let mut requests: HashMap<MapData, u64, u32> =
        Map::HashMap(open_map(dir, RESET_REQUESTS_MAP)?).try_into()?;
    Ok(flow_ids.iter().try_for_each(|flow_id| requests.insert(flow_id, 1, 0))?)
}

/// Opens a pinned map.
///
/// # Errors
/// Fails if there is no such pin.
pub(super) fn open_map(dir: &Path, name: &str) -> Result<MapData, BpfError> {
    Ok(MapData::from_pin(dir.join(name))?)
}

/// Returns the ABI version of the pins of an engine.
///
/// # Errors
/// Fails if the map of the version is not readable.
pub(super) fn abi_version(dir: &Path, name: &str) -> Result<u32, BpfError> {
    let abi: Array<MapData, u32> = Map::Array(open_map(dir, name)?).try_into()?;
    Ok(abi.get(&0, 0)?)
}

fn read_route_names(dir: &Path, name: &str) -> Result<BTreeMap<u32, String>, BpfError> {
    let routes: HashMap<MapData, u32, RouteNameBytes> =
        Map::HashMap(open_map(dir, name)?).try_into()?;
    Ok(routes.iter().flatten().map(|(key, name)| (key, decode_name(&name))).collect())
}

/// Returns the counters, each summed over all CPUs.
fn read_counters(dir: &Path, name: &str) -> Result<Vec<u64>, BpfError> {
    let counters: PerCpuArray<MapData, u64> = Map::PerCpuArray(open_map(dir, name)?).try_into()?;
    let summed = |slot| Ok(counters.get(&slot, 0)?.iter().sum());
    (0..counters.len()).map(summed).collect()
}
