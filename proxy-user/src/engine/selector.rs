//! Which engine carries a flow: the first on the list that does not decline.

use std::fmt;
use std::sync::OnceLock;

use super::classifier::{TrafficClass, TrafficClassifier};
use super::copy::CopyEngine;
use super::packet::PacketEngine;
use super::sockmap::SockmapEngine;
use super::splice::SpliceEngine;
use super::{CarryResult, Declined, Engine, EngineKind, FlowEnd, Handover, SocketPair, StepResult};

/// What the operator asked for (`engine`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// For each flow what the benchmarks favour (docs/benchmarks.md), of what works on this kernel.
    #[default]
    Auto,
    /// This one first; `copy` still stands beneath it.
    Only(EngineKind),
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(engine) => f.write_str(engine.name()),
        }
    }
}

/// All engines and the order to try them in.
#[derive(Default)]
pub(crate) struct EngineSelector {
    /// There once it has been proved, if it works and is not ruled out.
    sockmap: OnceLock<SockmapEngine>,
    /// There if it was asked for.
    packet: OnceLock<PacketEngine>,
    splice: SpliceEngine,
    copy: CopyEngine,
}

impl EngineChoice {
    /// Which engines carry a flow, in words.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Auto => {
                "splice, else copy; sockmap, where it works, once a flow is a talk: small messages, or larger ones by turns"
            }
            Self::Only(EngineKind::Splice) => "splice, else copy",
            Self::Only(EngineKind::Sockmap) => "sockmap, else splice, else copy",
            Self::Only(EngineKind::Packet) => "packet, else splice, else copy",
            Self::Only(EngineKind::Copy) => "copy",
        }
    }
}

/// Hears what becomes of a pair on its way.
pub(crate) trait EngineObserver {
    /// An engine handed it back, and why.
    fn on_declined(&self, engine: EngineKind, reason: &'static str);
    /// Another engine carries it on.
    fn on_changed(&self, engine: EngineKind);
}

impl EngineSelector {
    /// Adds the engine that needs the kernel's help.
    pub(crate) fn set_sockmap(&self, sockmap: SockmapEngine) {
        let _once = self.sockmap.set(sockmap);
    }

    /// Adds the engine that has no sockets.
    pub(crate) fn set_packet(&self, packet: PacketEngine) {
        let _once = self.packet.set(packet);
    }

    /// The engine that wants a say in how a back end is dialled, if a flow is to be its.
    pub(crate) fn packet_engine(&self, choice: EngineChoice) -> Option<&PacketEngine> {
        self.packet.get().filter(|_| choice == EngineChoice::Only(EngineKind::Packet))
    }

    /// Whether it can do what a configuration demands; `auto` takes what there is.
    pub(crate) fn is_available(&self, choice: EngineChoice) -> bool {
        match choice {
            EngineChoice::Only(EngineKind::Sockmap) => self.sockmap.get().is_some(),
            EngineChoice::Only(EngineKind::Packet) => self.packet.get().is_some(),
            EngineChoice::Auto | EngineChoice::Only(EngineKind::Splice | EngineKind::Copy) => true,
        }
    }

    /// Carries a pair of this route to its end, to where it needs nobody, or through its beginnings. Each way
    /// that a flow may take is on the heap: an idle one keeps the memory of its own, not of the largest.
    pub(crate) async fn carry(
        &self,
        choice: EngineChoice,
        (pair, route): (SocketPair, &str),
        observer: &impl EngineObserver,
    ) -> CarryResult {
        match (choice, self.sockmap.get(), self.packet.get()) {
            (EngineChoice::Only(EngineKind::Sockmap), Some(sockmap), _) => CarryResult::Finished(
                Box::pin(self.carry_sockmap(sockmap, (pair, route), observer)).await,
            ),
            (EngineChoice::Only(EngineKind::Packet), _, Some(packet)) => {
                Box::pin(self.carry_packet(packet, (pair, route), observer)).await
            }
            (EngineChoice::Only(EngineKind::Copy), ..) => {
                Box::pin(self.start_with_copy(pair)).await
            }
            _ => Box::pin(self.start_with_splice(pair, observer)).await,
        }
    }

    /// Splices a pair through its beginnings, which are all that most have.
    async fn start_with_splice(
        &self,
        pair: SocketPair,
        observer: &impl EngineObserver,
    ) -> CarryResult {
        let classifier = TrafficClassifier::for_any();
        match self.splice.carry_until_classified(pair, Some(&classifier)).await {
            Ok(result) => result.into(),
            Err(Declined { pair, reason }) => {
                observer.on_declined(EngineKind::Splice, reason);
                Box::pin(self.start_with_copy(pair)).await
            }
        }
    }

    async fn start_with_copy(&self, pair: SocketPair) -> CarryResult {
        let classifier = TrafficClassifier::for_any();
        self.copy.carry_until_classified(pair, Some(&classifier)).await.into()
    }

    /// Carries on what has outlived its beginnings, on the runtime that this is called from.
    pub(crate) async fn carry_handover(
        &self,
        choice: EngineChoice,
        (handover, route): (Handover, &str),
        observer: &impl EngineObserver,
    ) -> FlowEnd {
        let Handover { pair, class } = handover;
        // Where it cannot be waited for: dropping it resets both.
        let Ok(pair) = pair.rebind_to_runtime() else { return FlowEnd::BackendReset };
        match choice {
            EngineChoice::Auto => Box::pin(self.carry_auto((pair, class), route, observer)).await,
            EngineChoice::Only(EngineKind::Copy) => Box::pin(self.carry_copy(pair)).await,
            EngineChoice::Only(EngineKind::Splice | EngineKind::Sockmap | EngineKind::Packet) => {
                Box::pin(self.carry_splice(pair, observer)).await
            }
        }
    }

    /// Splices, until the flow has proved to be a talk; then the kernel forwards each direction, until it turns
    /// bulk. The reason is in docs/benchmarks.md.
    async fn carry_auto(
        &self,
        (mut pair, mut class): (SocketPair, TrafficClass),
        route: &str,
        observer: &impl EngineObserver,
    ) -> FlowEnd {
        loop {
            // Without one it is not proved yet, or not to be had here.
            if let (TrafficClass::Interactive, Some(sockmap)) = (class, self.sockmap.get()) {
                pair.detach_bulk = true;
                observer.on_changed(EngineKind::Sockmap);
                return Box::pin(self.carry_sockmap(sockmap, (pair, route), observer)).await;
            }
            let classifier = TrafficClassifier::for_interactive();
            match Box::pin(self.splice.carry_until_classified(pair, Some(&classifier))).await {
                Ok(StepResult::Finished(end)) => return end,
                Ok(StepResult::Handover(handover)) => Handover { pair, class } = handover,
                Err(Declined { pair, reason }) => {
                    observer.on_declined(EngineKind::Splice, reason);
                    return Box::pin(self.carry_copy(pair)).await;
                }
            }
        }
    }

    async fn carry_sockmap(
        &self,
        sockmap: &SockmapEngine,
        (mut pair, route): (SocketPair, &str),
        observer: &impl EngineObserver,
    ) -> FlowEnd {
        pair.route_id = sockmap.route_id(route);
        match sockmap.carry(pair).await {
            Ok(end) => end,
            Err(Declined { pair, reason }) => {
                observer.on_declined(EngineKind::Sockmap, reason);
                Box::pin(self.carry_splice(pair, observer)).await
            }
        }
    }

    async fn carry_packet(
        &self,
        packet: &PacketEngine,
        (mut pair, route): (SocketPair, &str),
        observer: &impl EngineObserver,
    ) -> CarryResult {
        pair.route_id = packet.route_id(route);
        match packet.carry(pair).await {
            Ok(course) => course,
            Err(Declined { pair, reason }) => {
                observer.on_declined(EngineKind::Packet, reason);
                CarryResult::Finished(match pair.register_backend() {
                    Ok(pair) => Box::pin(self.carry_splice(pair, observer)).await,
                    Err(_) => FlowEnd::BackendReset,
                })
            }
        }
    }

    async fn carry_splice(&self, pair: SocketPair, observer: &impl EngineObserver) -> FlowEnd {
        match self.splice.carry(pair).await {
            Ok(end) => end,
            Err(Declined { pair, reason }) => {
                observer.on_declined(EngineKind::Splice, reason);
                Box::pin(self.carry_copy(pair)).await
            }
        }
    }

    async fn carry_copy(&self, pair: SocketPair) -> FlowEnd {
        let Ok(end) = self.copy.carry(pair).await;
        end
    }
}
