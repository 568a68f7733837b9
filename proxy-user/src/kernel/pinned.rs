//! What an instance has pinned, read from outside: also while its agent is stopped or hangs.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use snisplit_common::abi::{
    ABI_MAP, ABI_VERSION, COUNTERS_MAP, Count, FLOWS_MAP, Flow, ROUTES_MAP,
};

use super::KernelError;
use super::layout::{FlowBytes, Plain as _};
use super::routes::{Name, text};

/// The maps of an instance as they are at this instant.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// Directions by the cookie of the socket that receives.
    pub(crate) flows: BTreeMap<u64, Flow>,
    routes: BTreeMap<u32, String>,
    counters: Vec<u64>,
}

impl Pinned {
    /// Reads all of them. Entries that come and go meanwhile may be missed.
    pub(crate) fn read(folder: &Path) -> Result<Self, KernelError> {
        let pin = |name| MapData::from_pin(folder.join(name));
        let abi: Array<MapData, u32> = Map::Array(pin(ABI_MAP)?).try_into()?;
        let version = abi.get(&0, 0)?;
        if version != ABI_VERSION {
            return Err(KernelError::Abi(version));
        }
        let flows: HashMap<MapData, u64, FlowBytes> = Map::HashMap(pin(FLOWS_MAP)?).try_into()?;
        let routes: HashMap<MapData, u32, Name> = Map::HashMap(pin(ROUTES_MAP)?).try_into()?;
        let counters: PerCpuArray<MapData, u64> =
            Map::PerCpuArray(pin(COUNTERS_MAP)?).try_into()?;
        let summed = |slot| Ok(counters.get(&slot, 0)?.iter().sum());
        let flow = |(cookie, bytes): (u64, FlowBytes)| (cookie, Flow::get(&bytes));
        Ok(Self {
            flows: flows.iter().flatten().map(flow).collect(),
            routes: routes.iter().flatten().map(|(key, name)| (key, text(&name))).collect(),
            counters: (0..counters.len()).map(summed).collect::<Result<_, KernelError>>()?,
        })
    }

    /// The name of a flow's route.
    pub(crate) fn route(&self, flow: &Flow) -> &str {
        self.routes.get(&flow.route).map_or("?", String::as_str)
    }

    pub(crate) fn count(&self, count: Count) -> u64 {
        self.counters.get(count as usize).copied().unwrap_or_default()
    }
}
