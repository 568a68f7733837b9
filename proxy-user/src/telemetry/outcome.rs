//! How connections end, and why the agent rejects them: the values of the labels `outcome` and `reason`.

use snisplit_common::client_hello::ClientHelloError;
use snisplit_common::decide::DecisionReason;
use snisplit_common::proxy_protocol::HeaderError;

use crate::engine::FlowEnd;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The agent forwarded or terminated the connection until its flow ended.
    FlowEnded(FlowEnd),
    /// The agent answered a TLS-ALPN-01 validation itself.
    ChallengeAnswered,
    /// The TLS handshake with the agent failed or timed out.
    HandshakeFailed,
    /// The agent sent a TLS alert and closed the connection.
    Rejected(RejectReason),
    /// The client closed the connection before its hello was complete.
    ClientClosed,
    /// The agent reset the connection: no byte for `idle_timeout`.
    IdleTimeout,
    /// The agent reset the connection when it stopped.
    Shutdown,
    /// The task of the connection ended without an outcome. This is a bug.
    InternalError,
}

impl Outcome {
    /// The value of the label `outcome`.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::FlowEnded(end) => end.label(),
            Self::ChallengeAnswered => "challenge_answered",
            Self::HandshakeFailed => "handshake_failed",
            Self::Rejected(_) => "rejected",
            Self::ClientClosed => "client_closed",
            Self::IdleTimeout => "idle_timeout",
            Self::Shutdown => "shutdown",
            Self::InternalError => "internal_error",
        }
    }
}

/// Why the agent rejected a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RejectReason {
    /// `limits.max_connections` is reached.
    MaxConnections,
    /// `limits.max_pending_handshakes` is reached.
    MaxPendingHandshakes,
    /// `limits.max_connections_per_source` is reached.
    MaxConnectionsPerSource,
    /// `limits.accept_rate` is exceeded.
    AcceptRate,
    /// The client sent no byte within `client_hello_timeout`.
    NoData,
    /// The client sent an incomplete hello within `client_hello_timeout`.
    ClientHelloTimeout,
    /// The client closed its side in the middle of its hello.
    TruncatedClientHello,
    /// The bytes of the client are not an acceptable hello.
    InvalidClientHello(ClientHelloError),
    /// The PROXY header of a trusted proxy is missing or invalid.
    InvalidProxyHeader(HeaderError),
    /// An address outside `proxy_protocol_from` sent a PROXY header.
    ProxyHeaderNotAllowed,
    /// The agent itself opened the connection: a route leads back to a listener.
    Loop,
    /// The policy rejected the hello.
    Decision(DecisionReason),
    /// No back end of the route answered.
    NoBackend,
}

impl RejectReason {
    /// The value of the label `reason`. A reason that wraps another has the label of that one.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::MaxConnections => "max_connections",
            Self::MaxPendingHandshakes => "max_pending_handshakes",
            Self::MaxConnectionsPerSource => "max_connections_per_source",
            Self::AcceptRate => "accept_rate",
            Self::NoData => "no_data",
            Self::ClientHelloTimeout => "client_hello_timeout",
            Self::TruncatedClientHello => "truncated_client_hello",
            Self::InvalidClientHello(error) => error.label(),
            Self::InvalidProxyHeader(error) => error.label(),
            Self::ProxyHeaderNotAllowed => "proxy_header_not_allowed",
            Self::Loop => "loop",
            Self::Decision(reason) => reason.label(),
            Self::NoBackend => "no_backend",
        }
    }
}
