//! A person's way to a provider and back, in a browser: what it takes along is derived from one secret, which only the
//! browser has. And what the provider is shown at the end, which only the browser can read.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest, Sha256};

use crate::kernel::Caller;
use crate::kernel::secret::Plain;

/// One way there and back.
#[derive(Clone, Debug)]
pub struct Trip {
    secret: Plain,
    /// Where the provider sends the browser.
    pub redirect: String,
}

/// Who has come back.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Who it is.
    pub caller: Caller,
    /// What the provider is shown when the session ends.
    pub hint: String,
}

impl Trip {
    /// The one of this secret.
    pub fn new(secret: Plain, redirect: String) -> Trip {
        Trip { secret, redirect }
    }

    /// By which it is known again: whoever comes back with another one was sent by somebody else.
    pub fn state(&self) -> String {
        self.derived("state")
    }

    /// What the provider says again of who has logged in: nobody brings along what was said to somebody else.
    pub fn nonce(&self) -> String {
        self.derived("nonce")
    }

    /// Without it nobody can do anything with the code that comes back (PKCE).
    pub fn verifier(&self) -> String {
        self.derived("verifier")
    }

    fn derived(&self, what: &str) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(digest(what, self.secret.reveal()))
    }
}

fn digest(what: &str, secret: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(format!("rhyzome {what} "));
    hash.update(secret);
    hash.finalize().into()
}

fn key(secret: &str) -> Option<(LessSafeKey, Nonce)> {
    // The key is that of one session, and encrypts one thing: its nonce is never used again.
    let key = UnboundKey::new(&AES_256_GCM, &digest("hint", secret)).ok()?;
    Some((LessSafeKey::new(key), Nonce::assume_unique_for_key([0; 12])))
}

/// Encrypts it, so that only who has the secret of the session can read it.
pub fn seal_hint(secret: &str, hint: &str) -> String {
    let mut bytes = hint.as_bytes().to_vec();
    let sealed = key(secret)
        .and_then(|(key, nonce)| key.seal_in_place_append_tag(nonce, Aad::empty(), &mut bytes).ok());
    sealed.map(|()| BASE64_URL_SAFE_NO_PAD.encode(bytes)).unwrap_or_default()
}

/// What it was.
pub fn open_hint(secret: &str, sealed: &str) -> Option<String> {
    let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(sealed).ok().filter(|bytes| !bytes.is_empty())?;
    let (key, nonce) = key(secret)?;
    let opened = key.open_in_place(nonce, Aad::empty(), &mut bytes).ok()?;
    String::from_utf8(opened.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_secret_makes_what_has_nothing_in_common() {
        let trip = |secret: &str| Trip::new(Plain::new(secret.to_owned()), String::new());
        let (one, other) = (trip("one"), trip("other"));
        let all = [one.state(), one.nonce(), one.verifier(), other.state(), other.nonce(), other.verifier()];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        // RFC 7636: 43 characters of 32 bytes.
        assert!(all.iter().all(|text| text.len() == 43), "{all:?}");
        assert!(!format!("{one:?}").contains("one"), "{one:?}");
    }

    #[test]
    fn a_hint_is_read_by_its_own_secret_only() {
        let sealed = seal_hint("one", "a.b.c");
        assert!(!sealed.contains("a.b.c"));
        assert_eq!(open_hint("one", &sealed).as_deref(), Some("a.b.c"));
        for (secret, text) in [("other", sealed.as_str()), ("one", ""), ("one", "AAAA"), ("one", "!")] {
            assert_eq!(open_hint(secret, text), None, "{secret} {text}");
        }
    }
}
