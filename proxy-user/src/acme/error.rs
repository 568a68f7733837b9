//! Why a certificate is not obtained.

use std::time::Duration;

use instant_acme::Error;
use snisplit_common::renewal::FailureKind;
use thiserror::Error;

/// Longest time that an order may take.
pub(super) const ORDER_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Failure of an order, or of the account that it needs.
#[derive(Debug, Error)]
pub(super) enum AcmeError {
    /// The CA answered with a problem, or did not answer.
    #[error(transparent)]
    Protocol(#[from] Error),
    /// The CA changed the order to `invalid`; the text names the failed validations.
    #[error("{0}")]
    OrderInvalid(String),
    #[error("the order took longer than {} minutes", ORDER_TIMEOUT.as_secs() / 60)]
    OrderTimeout,
    /// The private key or the certificate signing request cannot be generated.
    #[error(transparent)]
    Csr(#[from] rcgen::Error),
    /// Anything else, such as the state directory or a DNS update.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl AcmeError {
    /// Returns whether the CA rejected only the nonce of a request.
    pub(super) fn is_bad_nonce(&self) -> bool {
        matches!(self, Self::Protocol(error) if is_bad_nonce(error))
    }

    /// Returns whether the CA does not know the account.
    pub(super) fn is_unknown_account(&self) -> bool {
        matches!(
            self,
            Self::Protocol(error)
                if problem_type(error) == Some("urn:ietf:params:acme:error:accountDoesNotExist")
        )
    }

    /// Returns the kind of failure, which decides the backoff.
    pub(super) fn kind(&self) -> FailureKind {
        match self {
            Self::Protocol(Error::Other(_) | Error::Timeout(_)) => FailureKind::Unreachable,
            Self::Protocol(error) if is_bad_nonce(error) => FailureKind::Unreachable,
            Self::Protocol(_)
            | Self::OrderInvalid(_)
            | Self::OrderTimeout
            | Self::Csr(_)
            | Self::Other(_) => FailureKind::Rejected,
        }
    }
}

/// Returns whether the CA rejected only the nonce of a request (RFC 8555 §6.5), which then had no
/// effect.
///
/// instant-acme has repeated such a request twice already, each time with a nonce from the CA.
pub(super) fn is_bad_nonce(error: &Error) -> bool {
    problem_type(error) == Some("urn:ietf:params:acme:error:badNonce")
}

fn problem_type(error: &Error) -> Option<&str> {
    let Error::Api(problem) = error else { return None };
    problem.r#type.as_deref()
}
