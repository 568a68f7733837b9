//! Migration of the pins of older ABI versions to this version.
//!
//! Flows continue meanwhile: the attached programs keep their maps until the next agent replaces them.

use std::fs;
use std::path::Path;

use aya::EbpfLoader;
use aya::maps::{Array, HashMap, Map, MapData, MapType};
use snisplit_common::abi::PACKET_ABI_VERSION;
use snisplit_common::abi::packet::v3::FlowEntryV3;
use snisplit_common::abi::packet::{
    PACKET_ABI_MAP, PACKET_COUNTERS_MAP, PACKET_FLOWS_MAP, PACKET_TUPLES_MAP,
};

use super::OBJECT;
use super::flow_table::tuple_entries;
use super::pins::{NEW_FLOWS_PIN, rename_old_pins};
use crate::bpf::codec::{FlowEntryBytes, TupleBytes, TupleEntryBytes, decode, encode};
use crate::bpf::error::BpfError;
use crate::bpf::inspect::{abi_version, open_map};

/// ABI version 2 has no counter of packets that XDP forwards.
const V2_NO_XDP: u32 = 2;
/// ABI version 3 has its flows in a hash map, with another layout.
const V3_HASH: u32 = 3;
/// ABI version 4 has other names of pins, and the layout of this version.
const V4_OLD_PINS: u32 = 4;

/// Converts the pins of an older ABI version, and returns that version.
///
/// Each step can be repeated: a call that was cut short leaves the version as it was.
///
/// # Errors
/// Fails if the version is unknown, or if the kernel does not let a map be read or written.
pub(crate) fn migrate(dir: &Path) -> Result<u32, BpfError> {
    let from_version = abi_version(dir, PACKET_ABI_MAP)?;
    match from_version {
        PACKET_ABI_VERSION => return Ok(from_version),
        V2_NO_XDP => {
            // The next agent makes new counters. An earlier call may have removed these already.
            let _already_removed = fs::remove_file(dir.join(PACKET_COUNTERS_MAP));
            convert_flow_table(dir)?;
        }
        V3_HASH => convert_flow_table(dir)?,
        V4_OLD_PINS => {}
        _ => return Err(BpfError::PacketAbiVersion(from_version, dir.display().to_string())),
    }
    rename_old_pins(dir)?;
    let mut abi: Array<MapData, u32> = Map::Array(open_map(dir, PACKET_ABI_MAP)?).try_into()?;
    abi.set(0, PACKET_ABI_VERSION, 0)?;
    Ok(from_version)
}

/// Copies the flows of a hash map into an array, and pins the array in place of the hash map.
fn convert_flow_table(dir: &Path) -> Result<(), BpfError> {
    let old = open_map(dir, PACKET_FLOWS_MAP)?;
    if old.info()?.map_type()? != MapType::Hash {
        // An earlier call has replaced it already.
        return Ok(());
    }
    let old: HashMap<MapData, u64, FlowEntryV3Bytes> = Map::HashMap(old).try_into()?;
    let new_pin = dir.join(NEW_FLOWS_PIN);
    let _not_interrupted_before = fs::remove_file(&new_pin);
    let mut ebpf = EbpfLoader::new().map_pin_path(PACKET_FLOWS_MAP, &new_pin).load(OBJECT)?;
    let table =
        ebpf.take_map(PACKET_FLOWS_MAP).ok_or(BpfError::MissingFromObject(PACKET_FLOWS_MAP))?;
    let mut table: Array<MapData, FlowEntryBytes> = table.try_into()?;
    let mut tuples: HashMap<MapData, TupleBytes, TupleEntryBytes> =
        Map::HashMap(open_map(dir, PACKET_TUPLES_MAP)?).try_into()?;
    for (slot, (flow_id, bytes)) in (0..).zip(old.iter().flatten()) {
        let Some(old_entry) = decode::<FlowEntryV3>(&bytes) else { continue };
        let entry = old_entry.to_present(flow_id);
        let bytes: FlowEntryBytes = encode(&entry);
        table.set(slot, bytes, 0)?;
        for (tuple, tuple_entry) in tuple_entries(flow_id, slot, &entry) {
            // Older versions leave out the slot, the last field. Their programs do not read it.
            if tuples.get(&tuple, 0).is_ok_and(|found| found[..12] == tuple_entry[..12]) {
                tuples.insert(tuple, tuple_entry, 0)?;
            }
        }
    }
    Ok(fs::rename(new_pin, dir.join(PACKET_FLOWS_MAP))?)
}

type FlowEntryV3Bytes = [u8; size_of::<FlowEntryV3>()];
