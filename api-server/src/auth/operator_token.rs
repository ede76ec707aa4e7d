//! The operator's token: made at the first start, kept in a file that only its owner can read. The process
//! keeps a hash of it, so that no dump of memory or log of state shows it.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::{Authenticator, RequestDetails, Verdict};
use crate::kernel::{Caller, Env};

/// How a token of this kind begins: so that it is recognised where it leaks.
const PREFIX: &str = "rzo1.";

/// Knows the operator by a bearer token.
pub struct OperatorToken {
    digest: [u8; 32],
}

/// Why there is no operator token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("the operator token {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("the operator token {0} can be read by others: `chmod 600` it, or delete it to get a new one")]
    Open(PathBuf),
    /// Somebody wrote something else there.
    #[error("the operator token {0} is too short to be one: delete the file to get a new one")]
    Weak(PathBuf),
}

// === impl OperatorToken ===

impl OperatorToken {
    /// Knows this token.
    pub fn new(token: &str) -> OperatorToken {
        OperatorToken { digest: Sha256::digest(token.trim()).into() }
    }

    /// The token in this file; a new one, readable by its owner only, if there is no such file.
    pub fn load_or_create(path: &Path, env: &Env) -> Result<OperatorToken, TokenError> {
        let failed = |source| TokenError::Io { path: path.to_owned(), source };
        match std::fs::read_to_string(path) {
            Ok(token) => {
                let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
                if mode & 0o077 != 0 {
                    return Err(TokenError::Open(path.to_owned()));
                }
                if token.trim().len() < 32 {
                    return Err(TokenError::Weak(path.to_owned()));
                }
                Ok(OperatorToken::new(&token))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let token = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(env.bytes::<32>()));
                let mut options = OpenOptions::new();
                let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
                file.write_all(format!("{token}\n").as_bytes()).map_err(failed)?;
                file.sync_all().map_err(failed)?;
                Ok(OperatorToken::new(&token))
            }
            Err(error) => Err(failed(error)),
        }
    }
}

impl Authenticator for OperatorToken {
    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        Box::pin(std::future::ready(self.verdict(header)))
    }
}

impl OperatorToken {
    fn verdict(&self, header: Option<&str>) -> Verdict {
        let Some((scheme, token)) = header.and_then(|header| header.split_once(' ')) else {
            return Verdict::NotMine;
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Verdict::NotMine;
        }
        let token = token.trim();
        let digest: [u8; 32] = Sha256::digest(token).into();
        if same(&digest, &self.digest) {
            return Verdict::Caller(Caller {
                name: "operator".into(),
                credential: "operator-token".into(),
                operator: true,
            });
        }
        if token.starts_with(PREFIX) {
            return Verdict::Refused("this operator token is not the one of this server".into());
        }
        Verdict::NotMine
    }
}

/// Compares without telling by its time how much is the same.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernel::Timestamp;
    use crate::kernel::env::{Clock, Random};

    struct Fixed;

    impl Clock for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp(0)
        }
    }

    impl Random for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(7);
        }
    }

    #[test]
    fn made_once_kept_0600_and_known_again() {
        let env = Env::new(Arc::new(Fixed), Arc::new(Fixed));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.token");
        OperatorToken::load_or_create(&path, &env).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let written = std::fs::read_to_string(&path).unwrap();
        let again = OperatorToken::load_or_create(&path, &env).unwrap();
        let header = format!("Bearer {}", written.trim());
        assert!(matches!(again.verdict(Some(&header)), Verdict::Caller(caller) if caller.operator));
        assert!(matches!(again.verdict(Some("Bearer rzo1.other")), Verdict::Refused(_)));
        for foreign in [None, Some("Bearer other"), Some("Basic eDp5"), Some("")] {
            assert_eq!(again.verdict(foreign), Verdict::NotMine);
        }

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(OperatorToken::load_or_create(&path, &env), Err(TokenError::Open(_))));
    }
}
