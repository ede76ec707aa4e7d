//! The line with which an agent joins: `rzj1.<secret>.<SHA-256 of the cluster's root>`. The store keeps a
//! hash of the secret; the root lets the agent know that it talks to the right cluster.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::Env;

const PREFIX: &str = "rzj1";

/// A new join token. Its line is shown once.
pub struct JoinToken {
    /// What the agent is given.
    pub line: String,
    /// What is kept: see `hash_of`.
    pub hash: String,
}

/// A new token that pins this root (the SHA-256 of its certificate, in hex).
pub fn invite(env: &Env, root_sha256: &str) -> JoinToken {
    let secret = BASE64_URL_SAFE_NO_PAD.encode(env.bytes::<32>());
    let line = format!("{PREFIX}.{secret}.{root_sha256}");
    JoinToken { hash: hash_of(&line), line }
}

/// The hash under which a token is kept, in hex: of its secret's letters. Takes the whole line, or the secret.
pub fn hash_of(token: &str) -> String {
    let token = token.trim();
    let secret = match token.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')) {
        Some(rest) => rest.split('.').next().unwrap_or(rest),
        None => token,
    };
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_and_the_secret_are_kept_alike() {
        let hash = hash_of("rzj1.c2VjcmV0.0123");
        assert_eq!(hash, hash_of("c2VjcmV0"));
        assert_eq!(hash, hash_of(" rzj1.c2VjcmV0.4567\n"));
        assert_ne!(hash, hash_of("rzj1.other.0123"));
        assert_eq!(hash.len(), 64);
    }
}
