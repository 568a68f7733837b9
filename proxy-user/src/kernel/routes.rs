//! Numbers for routes, so that a flow in the kernel can say which one it belongs to.

use std::collections::HashMap;

use aya::maps::{self, MapData};
use snisplit_common::abi::NAME_MAX;

/// A name as it stands in the map.
pub(super) type Name = [u8; NAME_MAX];

/// Names by number. A number is never given twice: a flow may outlive its route.
pub(super) struct Routes {
    map: maps::HashMap<MapData, u32, Name>,
    known: HashMap<String, u32>,
}

impl Routes {
    pub(super) fn new(map: maps::HashMap<MapData, u32, Name>) -> Self {
        Self { map, known: HashMap::new() }
    }

    pub(super) fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.known.get(name) {
            return *number;
        }
        let number = u32::try_from(self.known.len()).map_or(0, |all| all + 1);
        let mut bytes = [0; NAME_MAX];
        let kept = name.len().min(NAME_MAX);
        bytes[..kept].copy_from_slice(&name.as_bytes()[..kept]);
        // A full map is the only way to fail, and the next route has no better luck.
        match self.map.insert(number, bytes, 0) {
            Ok(()) => {
                self.known.insert(name.to_owned(), number);
                number
            }
            Err(_) => 0,
        }
    }
}
