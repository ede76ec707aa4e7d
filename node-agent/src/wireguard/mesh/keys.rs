//! The keys of this node in a mesh: made here, kept in one file that nobody else reads, and never told but for their
//! public halves. A key is told before it is used, so that others let it shake hands when it comes.

use crate::files;
use crate::wireguard::keys::{PublicKey, SecretKey, from_hex, hex};
use rhyzome_proto::v1::MeshMemberOrder;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use x25519_dalek::StaticSecret;

/// Others have this long from the moment when the control plane says that it has told them.
pub const SETTLE_MS: u64 = 10_000;

/// As they are kept, in hexadecimal digits. Not printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    current: String,
    since_ms: u64,
    next: Option<String>,
    rotations: u64,
}

/// The keys of a member.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// In use.
    pub current: SecretKey,
    /// Since when.
    pub since_ms: u64,
    /// The one after it.
    pub next: Option<SecretKey>,
    /// How many requests for another key this one has answered.
    pub rotations: u64,
}

/// What is to be done about keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this moment; none: before something is heard.
    Nothing(Option<u64>),
    /// Make the next one, and tell it.
    Make,
    /// The next one is known to all: use it.
    Switch,
}

impl Keys {
    /// New ones.
    pub fn make(now_ms: u64, rotations: u64) -> io::Result<Self> {
        Ok(Self { current: secret()?, since_ms: now_ms, next: None, rotations })
    }

    /// Those in this folder, if there are any.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(folder.join("keys.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let kept: Kept = serde_json::from_slice(&bytes)?;
        let key = |text: &str| {
            let bytes = from_hex(text).ok_or_else(|| io::Error::other("keys.json has no good key"));
            bytes.map(SecretKey)
        };
        Ok(Some(Self {
            current: key(&kept.current)?,
            since_ms: kept.since_ms,
            next: kept.next.as_deref().map(key).transpose()?,
            rotations: kept.rotations,
        }))
    }

    /// Keeps them: on the disk when it returns.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let kept = Kept {
            current: hex(&self.current.0),
            since_ms: self.since_ms,
            next: self.next.as_ref().map(|key| hex(&key.0)),
            rotations: self.rotations,
        };
        files::write_durable(&folder.join("keys.json"), &serde_json::to_vec_pretty(&kept)?)?;
        files::sync_folder(folder)
    }

    /// What is due. `heard_ms`: since when the control plane says the next key to all.
    pub fn due(&self, order: &MeshMemberOrder, heard_ms: Option<u64>, now_ms: u64) -> Due {
        if self.next.is_some() {
            return match heard_ms.map(|since| since.saturating_add(SETTLE_MS)) {
                Some(at) if now_ms >= at => Due::Switch,
                at => Due::Nothing(at),
            };
        }
        // What others do not know yet needs no successor.
        if order.public_key != public(&self.current).to_string() {
            return Due::Nothing(None);
        }
        if order.rotations > self.rotations {
            return Due::Make;
        }
        if order.rotation_seconds == 0 {
            return Due::Nothing(None);
        }
        let at = self.since_ms.saturating_add(u64::from(order.rotation_seconds) * 1000);
        if now_ms >= at { Due::Make } else { Due::Nothing(Some(at)) }
    }

    /// Makes the next one, which answers so many requests for another: one that comes later wants one more.
    pub fn announce(&mut self, rotations: u64) -> io::Result<()> {
        (self.next, self.rotations) = (Some(secret()?), rotations);
        Ok(())
    }

    /// The next one is the present one from now on; the former is forgotten.
    pub fn switch(&mut self, now_ms: u64) {
        if let Some(next) = self.next.take() {
            (self.current, self.since_ms) = (next, now_ms);
        }
    }

    /// The public half of the next one.
    pub fn next_public(&self) -> Option<PublicKey> {
        self.next.as_ref().map(public)
    }
}

/// The public half of a key.
pub fn public(key: &SecretKey) -> PublicKey {
    PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(key.0)).to_bytes())
}

fn secret() -> io::Result<SecretKey> {
    let random = || rhyzome_pki::random_hex().map_err(io::Error::other);
    let mut bytes = from_hex(&(random()? + &random()?)).ok_or_else(|| io::Error::other("no random bytes"))?;
    // Clamped, as `wg genkey` writes it: a device would do it, and then have another key than it was given.
    bytes[0] &= 248;
    bytes[31] = (bytes[31] & 127) | 64;
    Ok(SecretKey(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn keys_are_kept_where_nobody_else_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("mshm_1");
        assert!(Keys::read(&folder).unwrap().is_none());
        let mut keys = Keys::make(5, 2).unwrap();
        keys.announce(0).unwrap();
        keys.write(&folder).unwrap();
        assert!(Keys::read(&folder).unwrap() == Some(keys.clone()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("keys.json"))), (0o700, 0o600));
        let other = Keys::make(5, 2).unwrap();
        assert!(keys.current != other.current && keys.next.as_ref() != Some(&keys.current));
    }

    #[test]
    fn a_key_is_told_to_all_before_it_is_used() {
        let mut keys = Keys::make(1_000, 0).unwrap();
        let mut order = MeshMemberOrder { rotation_seconds: 60, ..MeshMemberOrder::default() };
        assert_eq!(keys.due(&order, None, 900_000), Due::Nothing(None), "nobody knows the first one");
        order.public_key = public(&keys.current).to_string();
        assert_eq!(keys.due(&order, None, 60_999), Due::Nothing(Some(61_000)));
        assert_eq!(keys.due(&order, None, 61_000), Due::Make);
        keys.announce(0).unwrap();
        assert_eq!(keys.due(&order, None, 900_000), Due::Nothing(None), "while no server is heard");
        assert_eq!(keys.due(&order, Some(70_000), 79_999), Due::Nothing(Some(80_000)));
        assert_eq!(keys.due(&order, Some(70_000), 80_000), Due::Switch);
        let next = keys.next_public();
        keys.switch(80_000);
        assert_eq!((Some(public(&keys.current)), keys.next_public()), (next, None));
        order.public_key = public(&keys.current).to_string();
        assert_eq!(keys.due(&order, None, 80_000), Due::Nothing(Some(140_000)));
        order.rotations = 1;
        assert_eq!(keys.due(&order, None, 80_000), Due::Make, "it was asked to");
        keys.announce(1).unwrap();
        order.rotations = 2;
        keys.switch(90_000);
        order.public_key = public(&keys.current).to_string();
        assert_eq!(
            keys.due(&order, None, 90_000),
            Due::Make,
            "asked again while the next one was on its way"
        );
        (order.rotations, order.rotation_seconds) = (0, 0);
        assert_eq!(keys.due(&order, None, u64::MAX), Due::Nothing(None));
    }

    /// Of RFC 7748, section 6.1.
    #[test]
    fn the_public_half_is_what_others_make_of_it() {
        let key = SecretKey::parse("key", "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        assert_eq!(public(&key).to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }
}
