//! Numbers for routes, so that a flow in the kernel can say which one it belongs to.

use std::collections::HashMap;

use aya::maps::{self, MapData};
use snisplit_common::abi::ROUTE_NAME_LEN;

/// A name as it stands in the map.
pub(super) type Name = [u8; ROUTE_NAME_LEN];

/// Names by number. A number is never given twice: a flow may outlive its route.
pub(super) struct Routes {
    map: maps::HashMap<MapData, u32, Name>,
    known: HashMap<String, u32>,
}

/// A name as people read it.
pub(super) fn text(name: &Name) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

impl Routes {
    pub(super) fn new(map: maps::HashMap<MapData, u32, Name>) -> Self {
        let known = map.iter().flatten().map(|(number, name)| (text(&name), number)).collect();
        Self { map, known }
    }

    /// The name of a number.
    pub(super) fn name(&self, number: u32) -> Option<String> {
        self.map.get(&number, 0).ok().map(|name| text(&name))
    }

    pub(super) fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.known.get(name) {
            return *number;
        }
        let number = u32::try_from(self.known.len()).map_or(0, |all| all + 1);
        let mut bytes = [0; ROUTE_NAME_LEN];
        let kept = name.len().min(ROUTE_NAME_LEN);
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
