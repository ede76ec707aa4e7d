//! What can go wrong with certificates, one clear line each.
use std::path::PathBuf;

/// Why something about certificates did not work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read, written or made.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A private key that others can read is no longer private.
    #[error("{} can be read by others (mode {mode:04o}); make it private: chmod 600 {}", path.display(), path.display())]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is there, but is not what it should be.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which thing.
        what: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// A signing request that is not acceptable.
    #[error("signing request refused: {0}")]
    Request(String),
    /// A peer's certificate that names no node.
    #[error("certificate refused: {0}")]
    Peer(String),
    /// A peer's certificate whose time has not come.
    #[error("the certificate is not good yet: the clocks differ by more than it was dated back")]
    TooEarly,
    /// The certificate library refused.
    #[error("certificates: {0}")]
    Rcgen(#[from] rcgen::Error),
    /// The TLS library refused.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The system gave no random numbers.
    #[error("the system's random number generator failed")]
    Random,
}

impl PkiError {
    pub(crate) fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), reason: reason.into() }
    }
}
