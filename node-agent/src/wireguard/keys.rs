//! Keys of WireGuard: 32 bytes, in base64 where people read them. Secret ones are never printed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;

/// A public key: it names a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// A private or a preshared key.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(pub [u8; 32]);

impl PublicKey {
    /// From base64.
    pub fn parse(text: &str) -> Result<Self, String> {
        decode(text).map(Self).ok_or_else(|| format!("{text:?} is no public key: 32 bytes in base64"))
    }
}

impl SecretKey {
    /// From base64. `what` is said if it is none; the text never is.
    pub fn parse(what: &str, text: &str) -> Result<Self, String> {
        decode(text).map(Self).ok_or_else(|| format!("the {what} is not 32 bytes in base64"))
    }

    /// True for the one that means that there is none.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 32]
    }
}

fn decode(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text.trim()).ok()?.try_into().ok()
}

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("(secret)")
    }
}

/// As the text protocol of devices has keys.
pub fn hex(key: &[u8; 32]) -> String {
    use fmt::Write as _;
    key.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The reverse of [`hex`].
pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_secret_ones_not_shown() {
        let text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let key = PublicKey::parse(text).unwrap();
        assert_eq!((key.to_string().as_str(), from_hex(&hex(&key.0))), (text, Some(key.0)));
        let secret = SecretKey::parse("private key", text).unwrap();
        assert_eq!(format!("{secret:?}"), "(secret)");
        for bad in ["", "AAEC", &"!".repeat(44), &format!("{text}{text}")] {
            assert!(PublicKey::parse(bad).is_err());
            let said = SecretKey::parse("private key", bad).unwrap_err();
            assert_eq!(said, "the private key is not 32 bytes in base64");
            assert_eq!(from_hex(bad), None);
        }
    }
}
