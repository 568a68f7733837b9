//! Which engine carries a flow: the first on the list that does not decline.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use super::copy::Copy;
use super::pace::{Kind, Pace};
use super::packet::Packet;
use super::sockmap::Sockmap;
use super::splice::Splice;
use super::{Carried, Course, Declined, End, Engine, Grown, Pair, Tier};

/// What the operator asked for (`engine`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// For each flow what the benchmarks favour (docs/benchmarks.md), of what works on this kernel.
    #[default]
    Auto,
    /// This one first; `copy` still stands beneath it.
    Only(Tier),
}

impl FromStr for Choice {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "auto" => Ok(Self::Auto),
            "copy" => Ok(Self::Only(Tier::Copy)),
            "splice" => Ok(Self::Only(Tier::Splice)),
            "sockmap" => Ok(Self::Only(Tier::Sockmap)),
            "packet" => Ok(Self::Only(Tier::Packet)),
            _ => Err("is no engine; one of auto, packet, sockmap, splice, copy"),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(tier) => f.write_str(tier.name()),
        }
    }
}

/// All engines and the order to try them in.
#[derive(Default)]
pub(crate) struct Ladder {
    /// There once it has been proved, if it works and is not ruled out.
    sockmap: OnceLock<Sockmap>,
    /// There if it was asked for.
    packet: OnceLock<Packet>,
    splice: Splice,
    copy: Copy,
}

impl Choice {
    /// Which engines carry a flow, in words.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Auto => {
                "splice, else copy; sockmap, where it works, once a flow is a talk: small messages, or larger ones by turns"
            }
            Self::Only(Tier::Splice) => "splice, else copy",
            Self::Only(Tier::Sockmap) => "sockmap, else splice, else copy",
            Self::Only(Tier::Packet) => "packet, else splice, else copy",
            Self::Only(Tier::Copy) => "copy",
        }
    }
}

/// Hears what becomes of a pair on its way.
pub(crate) trait Listener {
    /// An engine handed it back, and why.
    fn declined(&self, by: Tier, why: &'static str);
    /// Another engine carries it on.
    fn moved(&self, to: Tier);
}

impl Ladder {
    /// Adds the engine that needs the kernel's help.
    pub(crate) fn add(&self, sockmap: Sockmap) {
        let _once = self.sockmap.set(sockmap);
    }

    /// Adds the engine that has no sockets.
    pub(crate) fn add_packet(&self, packet: Packet) {
        let _once = self.packet.set(packet);
    }

    /// The engine that wants a say in how a back end is dialled, if a flow is to be its.
    pub(crate) fn packet(&self, choice: Choice) -> Option<&Packet> {
        self.packet.get().filter(|_| choice == Choice::Only(Tier::Packet))
    }

    /// Whether it can do what a configuration demands; `auto` takes what there is.
    pub(crate) fn offers(&self, choice: Choice) -> bool {
        match choice {
            Choice::Only(Tier::Sockmap) => self.sockmap.get().is_some(),
            Choice::Only(Tier::Packet) => self.packet.get().is_some(),
            Choice::Auto | Choice::Only(Tier::Splice | Tier::Copy) => true,
        }
    }

    /// Carries a pair of this route to its end, to where it needs nobody, or through its beginnings. Each way
    /// that a flow may take is on the heap: an idle one keeps the memory of its own, not of the largest.
    pub(crate) async fn carry(
        &self,
        choice: Choice,
        (pair, route): (Pair, &str),
        heard: &impl Listener,
    ) -> Course {
        match (choice, self.sockmap.get(), self.packet.get()) {
            (Choice::Only(Tier::Sockmap), Some(sockmap), _) => {
                Course::Ended(Box::pin(self.sockmap(sockmap, (pair, route), heard)).await)
            }
            (Choice::Only(Tier::Packet), _, Some(packet)) => {
                Box::pin(self.packets(packet, (pair, route), heard)).await
            }
            (Choice::Only(Tier::Copy), ..) => Box::pin(self.begin_copied(pair)).await,
            _ => Box::pin(self.begin(pair, heard)).await,
        }
    }

    /// Splices a pair through its beginnings, which are all that most have.
    async fn begin(&self, pair: Pair, heard: &impl Listener) -> Course {
        let pace = Pace::of_any();
        match self.splice.carry_until_ripe(pair, Some(&pace)).await {
            Ok(carried) => carried.into(),
            Err(Declined { pair, reason }) => {
                heard.declined(Tier::Splice, reason);
                Box::pin(self.begin_copied(pair)).await
            }
        }
    }

    async fn begin_copied(&self, pair: Pair) -> Course {
        let pace = Pace::of_any();
        self.copy.carry_until_ripe(pair, Some(&pace)).await.into()
    }

    /// Carries on what has outlived its beginnings, on the runtime that this is called from.
    pub(crate) async fn carry_on(
        &self,
        choice: Choice,
        (grown, route): (Grown, &str),
        heard: &impl Listener,
    ) -> End {
        let Grown { pair, kind } = grown;
        // Where it cannot be waited for: dropping it resets both.
        let Ok(pair) = pair.here() else { return End::BackendReset };
        match choice {
            Choice::Auto => Box::pin(self.auto((pair, kind), route, heard)).await,
            Choice::Only(Tier::Copy) => Box::pin(self.copy(pair)).await,
            Choice::Only(Tier::Splice | Tier::Sockmap | Tier::Packet) => {
                Box::pin(self.splice(pair, heard)).await
            }
        }
    }

    /// Splices, until the flow has proved to be a talk; then the kernel forwards each direction, until it turns
    /// bulk. The reason is in docs/benchmarks.md.
    async fn auto(
        &self,
        (mut pair, mut kind): (Pair, Kind),
        route: &str,
        heard: &impl Listener,
    ) -> End {
        loop {
            // Without one it is not proved yet, or not to be had here.
            if let (Kind::Talk, Some(sockmap)) = (kind, self.sockmap.get()) {
                pair.may_turn_bulk = true;
                heard.moved(Tier::Sockmap);
                return Box::pin(self.sockmap(sockmap, (pair, route), heard)).await;
            }
            let pace = Pace::of_talk();
            match Box::pin(self.splice.carry_until_ripe(pair, Some(&pace))).await {
                Ok(Carried::Ended(end)) => return end,
                Ok(Carried::Grown(same)) => Grown { pair, kind } = same,
                Err(Declined { pair, reason }) => {
                    heard.declined(Tier::Splice, reason);
                    return Box::pin(self.copy(pair)).await;
                }
            }
        }
    }

    async fn sockmap(
        &self,
        sockmap: &Sockmap,
        (mut pair, route): (Pair, &str),
        heard: &impl Listener,
    ) -> End {
        pair.route = sockmap.route(route);
        match sockmap.carry(pair).await {
            Ok(end) => end,
            Err(Declined { pair, reason }) => {
                heard.declined(Tier::Sockmap, reason);
                Box::pin(self.splice(pair, heard)).await
            }
        }
    }

    async fn packets(
        &self,
        packet: &Packet,
        (mut pair, route): (Pair, &str),
        heard: &impl Listener,
    ) -> Course {
        pair.route = packet.route(route);
        match packet.take(pair).await {
            Ok(course) => course,
            Err(Declined { pair, reason }) => {
                heard.declined(Tier::Packet, reason);
                Course::Ended(match pair.kept() {
                    Ok(pair) => Box::pin(self.splice(pair, heard)).await,
                    Err(_) => End::BackendReset,
                })
            }
        }
    }

    async fn splice(&self, pair: Pair, heard: &impl Listener) -> End {
        match self.splice.carry(pair).await {
            Ok(end) => end,
            Err(Declined { pair, reason }) => {
                heard.declined(Tier::Splice, reason);
                Box::pin(self.copy(pair)).await
            }
        }
    }

    async fn copy(&self, pair: Pair) -> End {
        let Ok(end) = self.copy.carry(pair).await;
        end
    }
}
