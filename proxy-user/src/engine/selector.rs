//! Choice of the engine of each flow: the first one in the configured order that does not decline.

use std::fmt;
use std::sync::OnceLock;

use super::classifier::{TrafficClass, TrafficClassifier};
use super::copy::CopyEngine;
use super::packet::{
    NotTakenOver, OffloadedFlow, PacketEngine, TakeoverCandidate, TakeoverParams, TakeoverResult,
};
use super::sockmap::SockmapEngine;
use super::splice::SpliceEngine;
use super::transfer::{Handover, StepResult};
use super::{DeclineReason, Declined, Engine, EngineKind, FlowEnd, LocalErrorStage, SocketPair};

/// The configuration key `engine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The engine that suits the traffic of each flow, of those that work on this kernel
    /// (docs/concepts/engines.md). Never packet.
    #[default]
    Auto,
    /// This engine, then the ones that need less of the kernel.
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

/// All engines, and the order to try them in.
#[derive(Default)]
pub(crate) struct EngineSelector {
    /// Set once the self-test has passed.
    sockmap: OnceLock<SockmapEngine>,
    /// Set at start with `engine = "packet"`.
    packet: OnceLock<PacketEngine>,
    splice: SpliceEngine,
    copy: CopyEngine,
}

/// Result of [`EngineSelector::carry`].
pub(crate) enum CarryResult {
    /// An engine carried the flow to its end.
    Finished(FlowEnd),
    /// The packet engine's programs carry the flow. The caller waits for its end.
    Offloaded(Box<OffloadedFlow>),
    /// The first sample of messages is complete. The caller continues the flow with
    /// [`EngineSelector::carry_handover`], in any task and on any thread.
    Handover(Box<Handover>),
}

impl From<StepResult> for CarryResult {
    fn from(result: StepResult) -> Self {
        match result {
            StepResult::Finished(end) => Self::Finished(end),
            StepResult::Handover(handover) => Self::Handover(Box::new(handover)),
        }
    }
}

impl EngineChoice {
    /// Describes which engines carry flows, in the order that the selector tries them.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Auto => {
                "splice, else copy; sockmap, where it works, once a flow is interactive: small messages, or larger ones that alternate"
            }
            Self::Only(EngineKind::Splice) => "splice, else copy",
            Self::Only(EngineKind::Sockmap) => "sockmap, else splice, else copy",
            Self::Only(EngineKind::Packet) => "packet, else splice, else copy",
            Self::Only(EngineKind::Copy) => "copy",
        }
    }
}

/// A flow to carry.
pub(crate) struct FlowRequest<'r> {
    pub(crate) choice: EngineChoice,
    /// First name of the flow's route.
    pub(crate) route: &'r str,
    pub(crate) pair: SocketPair,
    /// What the packet engine needs for a takeover; `None` if the flow keeps its sockets.
    pub(crate) takeover: Option<Box<TakeoverParams>>,
}

/// Observer of the engines that a flow meets.
pub(crate) trait EngineObserver {
    /// Records that an engine declined a flow.
    fn on_declined(&self, engine: EngineKind, reason: DeclineReason);
    /// Records that an engine continues a running flow.
    fn on_changed(&self, engine: EngineKind);
}

impl EngineSelector {
    /// Adds the sockmap engine. Later calls have no effect.
    pub(crate) fn set_sockmap(&self, sockmap: SockmapEngine) {
        let _already_set = self.sockmap.set(sockmap);
    }

    /// Adds the packet engine. Later calls have no effect.
    pub(crate) fn set_packet(&self, packet: PacketEngine) {
        let _already_set = self.packet.set(packet);
    }

    /// The packet engine, if `choice` asks for it: it decides how to connect to the back end.
    pub(crate) fn packet_engine(&self, choice: EngineChoice) -> Option<&PacketEngine> {
        self.packet.get().filter(|_| choice == EngineChoice::Only(EngineKind::Packet))
    }

    /// Whether the engine that `choice` asks for is loaded. `auto` works with what is loaded.
    pub(crate) fn is_available(&self, choice: EngineChoice) -> bool {
        match choice {
            EngineChoice::Only(EngineKind::Sockmap) => self.sockmap.get().is_some(),
            EngineChoice::Only(EngineKind::Packet) => self.packet.get().is_some(),
            EngineChoice::Auto | EngineChoice::Only(EngineKind::Splice | EngineKind::Copy) => true,
        }
    }

    /// Carries a flow until it ends, is offloaded, or is ready for a handover.
    ///
    /// The future of each engine is on the heap, so that an idle flow keeps the memory of its own engine
    /// and not of the largest one.
    pub(crate) async fn carry(
        &self,
        request: FlowRequest<'_>,
        observer: &impl EngineObserver,
    ) -> CarryResult {
        let FlowRequest { choice, route, pair, takeover } = request;
        match (choice, self.sockmap.get(), self.packet.get()) {
            (EngineChoice::Only(EngineKind::Sockmap), Some(sockmap), _) => CarryResult::Finished(
                Box::pin(self.carry_sockmap(sockmap, pair, route, observer)).await,
            ),
            (EngineChoice::Only(EngineKind::Packet), _, Some(packet)) => {
                let flow = TakeoverCandidate { pair, params: takeover };
                Box::pin(self.carry_packet(packet, flow, route, observer)).await
            }
            (EngineChoice::Only(EngineKind::Copy), ..) => {
                Box::pin(self.start_with_copy(pair)).await
            }
            _ => Box::pin(self.start_with_splice(pair, observer)).await,
        }
    }

    /// Splices a pair until the first sample of messages is complete. Most flows end before.
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

    /// Continues a handed-over flow on the runtime of the calling task.
    pub(crate) async fn carry_handover(
        &self,
        choice: EngineChoice,
        handover: Handover,
        route: &str,
        observer: &impl EngineObserver,
    ) -> FlowEnd {
        let Handover { pair, class } = handover;
        let pair = match pair.rebind_to_runtime() {
            Ok(pair) => pair,
            // Dropping the sockets has reset both peers.
            Err(error) => return FlowEnd::local_error(LocalErrorStage::Register, &error),
        };
        match choice {
            EngineChoice::Auto => Box::pin(self.carry_auto(pair, class, route, observer)).await,
            EngineChoice::Only(EngineKind::Copy) => Box::pin(self.carry_copy(pair)).await,
            EngineChoice::Only(EngineKind::Splice | EngineKind::Sockmap | EngineKind::Packet) => {
                Box::pin(self.carry_splice(pair, observer)).await
            }
        }
    }

    /// Splices a flow until it is interactive. From then on the sockmap engine carries it, and leaves a
    /// direction to splice(2) once its traffic becomes bulk.
    async fn carry_auto(
        &self,
        mut pair: SocketPair,
        mut class: TrafficClass,
        route: &str,
        observer: &impl EngineObserver,
    ) -> FlowEnd {
        loop {
            // No engine: the self-test still runs, or this kernel has failed it.
            if let (TrafficClass::Interactive, Some(sockmap)) = (class, self.sockmap.get()) {
                pair.detach_bulk = true;
                observer.on_changed(EngineKind::Sockmap);
                return Box::pin(self.carry_sockmap(sockmap, pair, route, observer)).await;
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
        mut pair: SocketPair,
        route: &str,
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
        mut flow: TakeoverCandidate,
        route: &str,
        observer: &impl EngineObserver,
    ) -> CarryResult {
        flow.pair.route_id = packet.route_id(route);
        match packet.carry(flow).await {
            Ok(TakeoverResult::Offloaded(flow)) => CarryResult::Offloaded(flow),
            Ok(TakeoverResult::Finished(end)) => CarryResult::Finished(end),
            Err(NotTakenOver { flow, reason }) => {
                observer.on_declined(EngineKind::Packet, reason);
                CarryResult::Finished(match flow.into_socket_pair() {
                    // The lease outlives the sockets, which use its port.
                    Ok((pair, _lease)) => Box::pin(self.carry_splice(pair, observer)).await,
                    Err(error) => FlowEnd::local_error(LocalErrorStage::Register, &error),
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
