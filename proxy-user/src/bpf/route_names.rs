//! IDs of route names, by which map entries refer to routes.

use std::collections::HashMap;

use aya::maps::{self, MapData};
use snisplit_common::abi::ROUTE_NAME_LEN;

/// Bytes of a name in the map: UTF-8, filled up with zeros.
pub(super) type RouteNameBytes = [u8; ROUTE_NAME_LEN];

/// Map of names by ID. No ID is reused, because a flow may outlive its route.
pub(super) struct RouteNames {
    map: maps::HashMap<MapData, u32, RouteNameBytes>,
    ids: HashMap<String, u32>,
}

/// Decodes a name.
pub(super) fn decode_name(name: &RouteNameBytes) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

impl RouteNames {
    /// Reads the names that a map holds already.
    pub(super) fn new(map: maps::HashMap<MapData, u32, RouteNameBytes>) -> Self {
        let ids = map.iter().flatten().map(|(id, name)| (decode_name(&name), id)).collect();
        Self { map, ids }
    }

    /// Returns the name of an ID.
    pub(super) fn name(&self, id: u32) -> Option<String> {
        self.map.get(&id, 0).ok().map(|name| decode_name(&name))
    }

    /// Returns the ID of a name, a new one if need be. 0: the map is full.
    pub(super) fn intern(&mut self, name: &str) -> u32 {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = u32::try_from(self.ids.len()).map_or(0, |count| count + 1);
        let mut bytes = [0; ROUTE_NAME_LEN];
        let len = name.len().min(ROUTE_NAME_LEN);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        match self.map.insert(id, bytes, 0) {
            Ok(()) => {
                self.ids.insert(name.to_owned(), id);
                id
            }
            Err(_) => 0,
        }
    }
}
