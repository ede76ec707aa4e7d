//! What is said of SSH: keys of hosts, and certificates that a tenant's own authorities sign. Pure.

use ring::hkdf;
use ssh_key::certificate::{Builder, CertType};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{Algorithm, Certificate, HashAlg, LineEnding, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::secret::Plain;
use super::{Error, Timestamp};

/// Where SSH listens by custom.
pub const PORT: u16 = 22;
/// In the claims of an instance: the certificate of its SSH server, and who signs for those that it lets in.
pub const HOST_CERTIFICATE: &str = "ssh_host_certificate";
/// See `HOST_CERTIFICATE`.
pub const USER_AUTHORITY: &str = "ssh_user_authority";
/// A user's certificate is good for so long, in seconds: at least, without a word, at most.
pub const SECONDS: (u32, u32, u32) = (30, 300, 3600);
/// A certificate is good from so long before it was made: no two clocks are the same.
const BEFORE_SECONDS: u64 = 300;
/// A host's certificate is good as long as the host; this is longer than that.
const HOST_SECONDS: u64 = 100 * 365 * 86_400;
/// What an ordinary login may do beside running commands.
const EXTENSIONS: [&str; 4] =
    ["permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"];
/// For which purpose keys of hosts are derived. Another text makes other keys: it never changes.
const HOST_KEYS: &[u8] = b"rhyzome ssh host key 1";
const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
/// An encoded key is shorter than this, whatever it is.
const LONGEST_KEY: usize = 16 << 10;

/// Who signs, for one tenant and one purpose.
pub struct Authority(PrivateKey);

/// What a certificate is to say, beside whose key it is about.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Random.
    pub nonce: [u8; 16],
    /// Tells certificates apart.
    pub serial: u64,
    /// What sshd writes into its log.
    pub key_id: String,
    /// For whom it stands: names of a host, or what a user is let in as.
    pub principals: Vec<String>,
    /// When it is made.
    pub now: Timestamp,
}

/// A user's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserCertificate {
    /// One line, as OpenSSH reads it.
    pub line: String,
    /// From then on, in seconds since 1970.
    pub valid_after: u64,
    /// Until then.
    pub valid_before: u64,
}

/// A private key of a host, as OpenSSH writes it, from random bytes.
pub fn private_key(random: [u8; 32]) -> Option<Plain> {
    let pair = Ed25519Keypair::from_seed(&Zeroizing::new(random));
    let key = PrivateKey::new(KeypairData::from(pair), "").ok()?;
    Some(Plain::new(key.to_openssh(LineEnding::LF).ok()?.to_string()))
}

/// The public half of a host's private key, one line; `None` if it is none.
pub fn public_key(private: &str) -> Option<String> {
    let key = PrivateKey::from_openssh(private).ok()?;
    PublicKey::new(key.public_key().key_data().clone(), "").to_openssh().ok()
}

/// What is wrong with a private key of a host.
pub fn refuse_private(text: &str) -> Option<&'static str> {
    const REASON: &str =
        "must be an Ed25519 private key without a passphrase, as `ssh-keygen -t ed25519 -N ''` writes it";
    let text = text.trim();
    // Nothing before, nothing after: it is written into a file as it is.
    if text.len() > LONGEST_KEY || !text.starts_with(BEGIN) || !text.ends_with(END) {
        return Some(REASON);
    }
    match PrivateKey::from_openssh(text) {
        Ok(key) if !key.is_encrypted() && key.algorithm() == Algorithm::Ed25519 => None,
        _ => Some(REASON),
    }
}

/// A user's public key, of whatever type sshd believes; or what is wrong with it.
pub fn parse_public(text: &str) -> Result<PublicKey, String> {
    let text = text.trim();
    if text.contains("PRIVATE KEY") {
        return Err("is a private key: it stays with you; send its public half".to_owned());
    }
    if text.len() > LONGEST_KEY || text.contains(['\n', '\r']) {
        return Err("must be one line, as in a file that ends with .pub".to_owned());
    }
    let key = PublicKey::from_openssh(text);
    let key =
        key.map_err(|_| "must be a public key as OpenSSH writes it: `ssh-ed25519 AAAA...`".to_owned())?;
    match key.algorithm() {
        Algorithm::Dsa => Err("is a DSA key, which no sshd believes any more".to_owned()),
        _ => Ok(key),
    }
}

impl Authority {
    /// From its private key, as `private_key` has made it.
    pub fn from_private(private: &Plain) -> Result<Authority, Error> {
        let key = PrivateKey::from_openssh(private.reveal());
        key.map(Authority).map_err(|error| Error::Internal(format!("the key of an SSH authority: {error}")))
    }

    /// Its public half, one line, with this comment.
    pub fn line(&self, comment: &str) -> Result<String, Error> {
        PublicKey::new(self.0.public_key().key_data().clone(), comment).to_openssh().map_err(broken)
    }

    /// As `ssh-keygen -l` prints it: `SHA256:...`.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The private key of the host of this id, the same each time; from it nobody learns anything of another one's, nor
    /// of the authority.
    pub fn host_key(&self, id: &str) -> Option<Plain> {
        let own = Zeroizing::new(self.0.key_data().ed25519()?.private.to_bytes());
        let mut seed = Zeroizing::new([0; 32]);
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, HOST_KEYS);
        let (from, which) = (salt.extract(&own[..]), [id.as_bytes()]);
        from.expand(&which, hkdf::HKDF_SHA256).ok()?.fill(&mut seed[..]).ok()?;
        private_key(*seed)
    }

    /// Says that this is the key of the host of these names.
    pub fn sign_host(&self, public: &str, wanted: &Wanted) -> Result<String, Error> {
        let key = PublicKey::from_openssh(public).map_err(broken)?;
        let now = seconds(wanted.now);
        let until = now.saturating_add(HOST_SECONDS);
        self.sign(&key, wanted, (now.saturating_sub(BEFORE_SECONDS), until), CertType::Host, &[])
    }

    /// Says that whoever has this key is let in as these principals, for so long.
    pub fn sign_user(
        &self,
        key: &PublicKey,
        wanted: &Wanted,
        valid_seconds: u32,
    ) -> Result<UserCertificate, Error> {
        let now = seconds(wanted.now);
        let (valid_after, valid_before) =
            (now.saturating_sub(BEFORE_SECONDS), now.saturating_add(valid_seconds.into()));
        let line = self.sign(key, wanted, (valid_after, valid_before), CertType::User, &EXTENSIONS)?;
        Ok(UserCertificate { line, valid_after, valid_before })
    }

    fn sign(
        &self,
        key: &PublicKey,
        wanted: &Wanted,
        (after, before): (u64, u64),
        kind: CertType,
        extensions: &[&str],
    ) -> Result<String, Error> {
        let mut builder =
            Builder::new(wanted.nonce, key.key_data().clone(), after, before).map_err(broken)?;
        builder.serial(wanted.serial).map_err(broken)?;
        builder.cert_type(kind).map_err(broken)?;
        builder.key_id(wanted.key_id.as_str()).map_err(broken)?;
        for principal in &wanted.principals {
            builder.valid_principal(principal.as_str()).map_err(broken)?;
        }
        for extension in extensions {
            builder.extension(*extension, "").map_err(broken)?;
        }
        // Without principals this is refused: nothing is ever good for everybody.
        let certificate: Certificate = builder.sign(&self.0).map_err(broken)?;
        certificate.to_openssh().map_err(broken)
    }
}

fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.0 / 1_000_000).unwrap_or(0)
}

fn broken(error: ssh_key::Error) -> Error {
    Error::Internal(format!("an SSH certificate: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(seed: u8) -> Authority {
        Authority::from_private(&private_key([seed; 32]).unwrap()).unwrap()
    }

    fn wanted(principals: &[&str]) -> Wanted {
        let principals = principals.iter().map(ToString::to_string).collect();
        let now = Timestamp(1_700_000_000_000_000);
        Wanted { nonce: [7; 16], serial: 9, key_id: "otto".into(), principals, now }
    }

    fn fingerprints(authority: &Authority) -> [ssh_key::Fingerprint; 1] {
        [authority.0.fingerprint(HashAlg::Sha256)]
    }

    #[test]
    fn a_host_key_has_two_halves_and_no_passphrase() {
        let key = private_key([3; 32]).unwrap();
        assert_eq!(refuse_private(key.reveal()), None);
        assert!(public_key(key.reveal()).unwrap().starts_with("ssh-ed25519 AAAA"));
        assert_ne!(public_key(key.reveal()), public_key(private_key([4; 32]).unwrap().reveal()));
        for bad in ["", "ssh-ed25519 AAAA", BEGIN, &format!("#!/bin/sh\n{}", key.reveal())] {
            assert!(refuse_private(bad).is_some(), "{bad}");
        }
    }

    /// A key that comes out otherwise one day would be none that any guest has.
    #[test]
    fn the_key_of_a_host_is_the_same_for_ever() {
        let key = authority(1).host_key("inst_1").unwrap();
        assert_eq!(refuse_private(key.reveal()), None);
        assert_eq!(public_key(key.reveal()), public_key(authority(1).host_key("inst_1").unwrap().reveal()));
        let public = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJuiMpZQ2TucZmhkcL3zjqjQJGlOuUeloLXs5cyHtq+1";
        assert_eq!(public_key(key.reveal()).unwrap(), public);
        for other in [authority(1).host_key("inst_2"), authority(2).host_key("inst_1")] {
            assert_ne!(public_key(other.unwrap().reveal()).unwrap(), public);
        }
    }

    #[test]
    fn a_users_certificate_says_who_where_and_how_long() {
        let (ours, theirs) = (authority(1), authority(2));
        let key = parse_public(&public_key(private_key([5; 32]).unwrap().reveal()).unwrap()).unwrap();
        let made = ours.sign_user(&key, &wanted(&["inst_1"]), 300).unwrap();
        assert_eq!((made.valid_after, made.valid_before), (1_699_999_700, 1_700_000_300));
        let read = Certificate::from_openssh(&made.line).unwrap();
        assert_eq!(read.cert_type(), CertType::User);
        assert_eq!(
            (read.valid_principals(), read.key_id(), read.serial()),
            (&["inst_1".into()][..], "otto", 9)
        );
        assert_eq!(read.public_key(), key.key_data());
        assert!(read.extensions().contains_key("permit-pty"));
        assert!(read.validate_at(1_700_000_000, &fingerprints(&ours)).is_ok());
        // Too late, too early, by somebody else.
        assert!(read.validate_at(1_700_000_300, &fingerprints(&ours)).is_err());
        assert!(read.validate_at(1_699_999_699, &fingerprints(&ours)).is_err());
        assert!(read.validate_at(1_700_000_000, &fingerprints(&theirs)).is_err());
        assert!(ours.sign_user(&key, &wanted(&[]), 300).is_err(), "without principals it is good everywhere");
    }

    #[test]
    fn a_hosts_certificate_is_no_users() {
        let ours = authority(1);
        let public = public_key(private_key([5; 32]).unwrap().reveal()).unwrap();
        let read = Certificate::from_openssh(&ours.sign_host(&public, &wanted(&["inst_1", "web"])).unwrap())
            .unwrap();
        assert_eq!(read.cert_type(), CertType::Host);
        assert_eq!(read.valid_principals(), ["inst_1", "web"]);
        assert!(read.extensions().is_empty());
        assert!(read.validate_at(1_700_000_000 + 50 * 365 * 86_400, &fingerprints(&ours)).is_ok());
    }

    #[test]
    fn public_keys_of_all_types_are_read() {
        let good = [
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@laptop",
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=",
        ];
        for key in good {
            assert!(parse_public(key).is_ok(), "{key}");
        }
        let why = |key: &str| parse_public(key).unwrap_err();
        assert!(why(private_key([3; 32]).unwrap().reveal()).contains("stays with you"));
        assert!(why(&format!("{}\n{}", good[0], good[0])).contains("one line"));
        assert!(why("").contains("must be a public key") && why("ssh-ed25519 AAAA").contains("must be"));
        let certificate = authority(1)
            .sign_host(&public_key(private_key([5; 32]).unwrap().reveal()).unwrap(), &wanted(&["a"]));
        assert!(why(&certificate.unwrap()).contains("must be a public key"));
    }
}
