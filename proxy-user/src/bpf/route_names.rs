//! Numbers for routes, so that a flow in the kernel can say which one it belongs to.

use std::collections::HashMap;

use aya::maps::{self, MapData};
use snisplit_common::abi::ROUTE_NAME_LEN;

/// A name as it stands in the map.
pub(super) type RouteNameBytes = [u8; ROUTE_NAME_LEN];

/// Names by number. A number is never given twice: a flow may outlive its route.
pub(super) struct RouteNames {
    map: maps::HashMap<MapData, u32, RouteNameBytes>,
    ids: HashMap<String, u32>,
}

/// A name as people read it.
pub(super) fn decode_name(name: &RouteNameBytes) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

impl RouteNames {
    pub(super) fn new(map: maps::HashMap<MapData, u32, RouteNameBytes>) -> Self {
        let ids = map.iter().flatten().map(|(number, name)| (decode_name(&name), number)).collect();
        Self { map, ids }
    }

    /// The name of a number.
    pub(super) fn name(&self, id: u32) -> Option<String> {
        self.map.get(&id, 0).ok().map(|name| decode_name(&name))
    }

    pub(super) fn intern(&mut self, name: &str) -> u32 {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = u32::try_from(self.ids.len()).map_or(0, |all| all + 1);
        let mut bytes = [0; ROUTE_NAME_LEN];
        let len = name.len().min(ROUTE_NAME_LEN);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        // A full map is the only way to fail, and the next route has no better luck.
        match self.map.insert(id, bytes, 0) {
            Ok(()) => {
                self.ids.insert(name.to_owned(), id);
                id
            }
            Err(_) => 0,
        }
    }
}
