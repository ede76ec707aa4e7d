//! The operator's token: made at the first start, kept in a file that only its owner can read. The process
//! keeps a hash of it, so that no dump of memory or log of state shows it. A token that was renewed counts at once, in
//! every server that shares the file.

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use rhyzome_pki::{PkiError, write_private};
use sha2::{Digest, Sha256};

use super::{Authenticator, Now, RequestDetails, Verdict};
use crate::kernel::{Caller, Env};

/// How a token of this kind begins: so that it is recognised where it leaks.
const PREFIX: &str = "rzo1.";
/// What its bearer is called.
const OPERATOR: &str = "operator";

/// Knows the operator by a bearer token.
pub struct OperatorToken {
    file: Option<PathBuf>,
    known: RwLock<Known>,
}

/// What was read, and by what one sees that it is another file by now.
#[derive(Clone, Copy)]
struct Known {
    digest: [u8; 32],
    stamp: Option<Stamp>,
}

/// Inode, and time of the last change.
type Stamp = (u64, i64, i64);

/// Why there is no operator token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("the operator token {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: Error,
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
        OperatorToken { file: None, known: RwLock::new(Known { digest: digest(token), stamp: None }) }
    }

    /// The token in this file; a new one, readable by its owner only, if there is no such file.
    pub fn load_or_create(path: &Path, env: &Env) -> Result<OperatorToken, TokenError> {
        let failed = |source| TokenError::Io { path: path.to_owned(), source };
        match std::fs::metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let token = fresh(env);
                let mut options = OpenOptions::new();
                let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
                file.write_all(format!("{token}\n").as_bytes()).map_err(failed)?;
                file.sync_all().map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(OperatorToken { known: RwLock::new(read(path)?), file: Some(path.to_owned()) })
    }

    /// Makes a new token in this file; the one that was there is worth nothing from then on.
    pub fn renew(path: &Path, env: &Env) -> Result<String, TokenError> {
        let token = fresh(env);
        let failed = |error: PkiError| TokenError::Io { path: path.to_owned(), source: Error::other(error) };
        write_private(path, format!("{token}\n").as_bytes()).map_err(failed)?;
        Ok(token)
    }

    /// The token's digest, as the file has it now. A file that has gone or is not good changes nothing: the server
    /// goes on with the one that it knows.
    fn digest(&self) -> [u8; 32] {
        let known = *self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &self.file else { return known.digest };
        if std::fs::metadata(path).is_ok_and(|meta| known.stamp == Some(stamp(&meta))) {
            return known.digest;
        }
        let Ok(new) = read(path) else { return known.digest };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = new;
        new.digest
    }
}

fn fresh(env: &Env) -> String {
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(env.bytes::<32>()))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.trim()).into()
}

fn stamp(meta: &std::fs::Metadata) -> Stamp {
    (meta.ino(), meta.ctime(), meta.ctime_nsec())
}

fn read(path: &Path) -> Result<Known, TokenError> {
    let failed = |source| TokenError::Io { path: path.to_owned(), source };
    // Stamp first: what is changed after it is read again the next time.
    let meta = std::fs::metadata(path).map_err(failed)?;
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(TokenError::Open(path.to_owned()));
    }
    let token = std::fs::read_to_string(path).map_err(failed)?;
    if token.trim().len() < 32 {
        return Err(TokenError::Weak(path.to_owned()));
    }
    Ok(Known { digest: digest(&token), stamp: Some(stamp(&meta)) })
}

impl Authenticator for OperatorToken {
    /// Operators come by the server's own domain.
    fn serves(&self, domain: Option<&str>) -> bool {
        domain.is_none()
    }

    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        Box::pin(std::future::ready(self.verdict(header)))
    }

    /// A session goes on as long as the token is the one with which it began.
    fn now(&self, kept: &Caller) -> Option<Now> {
        let is_operator = kept.operator && kept.authenticator.is_empty() && kept.name == OPERATOR;
        let mark = || rhyzome_pki::hex(&Sha256::digest(self.digest()));
        is_operator.then(|| Ok((Caller::operator(OPERATOR, "operator-token"), mark())))
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
        if same(&digest(token), &self.digest()) {
            return Verdict::Caller(Caller::operator(OPERATOR, "operator-token"));
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

    struct Fixed(u8);

    impl Clock for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp(0)
        }
    }

    impl Random for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn made_once_kept_0600_and_known_again() {
        let env = Env::new(Arc::new(Fixed(7)), Arc::new(Fixed(7)));
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

        let renewed = format!(
            "Bearer {}",
            OperatorToken::renew(&path, &Env::new(Arc::new(Fixed(9)), Arc::new(Fixed(9)))).unwrap()
        );
        assert!(matches!(again.verdict(Some(&renewed)), Verdict::Caller(_)));
        assert!(matches!(again.verdict(Some(&header)), Verdict::Refused(_)));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(OperatorToken::load_or_create(&path, &env), Err(TokenError::Open(_))));
    }
}
