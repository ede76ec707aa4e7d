//! The cluster's authority: a root, and the intermediate under it that signs.
use crate::rotation::{self, Generation, Record, Role};
use crate::{PkiError, encoding, files, issue, peer};
use arc_swap::ArcSwap;
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// What signs certificates for one cluster. It may be exchanged for another while it is in use: see `rotation`.
pub struct Authority {
    /// Where it is kept, if it is our own.
    pub(crate) folder: Option<PathBuf>,
    pub(crate) keys: ArcSwap<Keys>,
    pub(crate) reading: Mutex<()>,
    cluster_id: String,
    pub(crate) node_life: Duration,
    pub(crate) server_life: Duration,
}

/// All that is exchanged together.
pub(crate) struct Keys {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    /// The issuing certificate, then what is above it, then the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Another way up, for those who know only the root before: the same issuing key signed by it, and that root.
    pub(crate) beside: Vec<CertificateDer<'static>>,
    /// All roots that are trusted now; the first is the one that the chain ends in.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    pub(crate) generations: Vec<Generation>,
    pub(crate) record: Record,
    pub(crate) edition: u64,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority(cluster {}, keys ..)", self.cluster_id)
    }
}

impl Authority {
    /// Opens the authority kept in `folder`, or makes a new one there if the folder is missing or empty.
    ///
    /// The folder appears whole or not at all, so a crash in the middle leaves nothing behind that a later
    /// start could take for an authority, and of two that start at once both use the same.
    pub fn open_or_create(folder: &Path, now: SystemTime) -> Result<Self, PkiError> {
        let is_empty = match std::fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(source) => return Err(PkiError::File { action: "read", path: folder.to_owned(), source }),
        };
        if is_empty {
            Self::create(folder, now)?;
        }
        let _held = rotation::hold(folder)?;
        Self::of(rotation::read(folder, Record::read(folder)?)?, Some(folder.to_owned()))
    }

    fn create(folder: &Path, now: SystemTime) -> Result<(), PkiError> {
        let mut draft = folder.as_os_str().to_owned();
        draft.push(format!(".{}.new", encoding::random_hex()?));
        let draft = Path::new(&draft);
        files::make_private_folder(draft)?;
        let new = issue::new_authority(&encoding::hex(&encoding::random::<8>()?), now, None)?;
        rotation::write_first(draft, &new)?;
        files::publish_folder(draft, folder)?;
        Ok(())
    }

    /// An authority of one's own: `cert` holds the issuing certificate, then those above it up to the root
    /// (or the root alone, if it issues itself); `key` the issuing certificate's key.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, PkiError> {
        Self::from_pem(&files::read(cert)?, &files::read_key(key)?, &cert.display().to_string())
    }

    /// The same from PEM texts; `what` names the certificate in errors.
    pub fn from_pem(cert_pem: &str, key_pem: &str, what: &str) -> Result<Self, PkiError> {
        let chain = encoding::certificates(cert_pem, what)?;
        Self::assemble(chain, key_pem, what)
    }

    fn assemble(chain: Vec<CertificateDer<'static>>, key_pem: &str, what: &str) -> Result<Self, PkiError> {
        let issuer = issuer(&chain, key_pem, what)?;
        let root = chain[chain.len() - 1].clone();
        let generations = vec![rotation::generation(Role::Signs, &root, &chain[0])?];
        let (beside, record) = (Vec::new(), Record::default());
        Self::of(Keys { issuer, chain, beside, roots: vec![root], generations, record, edition: 0 }, None)
    }

    fn of(keys: Keys, folder: Option<PathBuf>) -> Result<Self, PkiError> {
        let cluster_id = cluster_of(&keys.roots[0])?;
        Ok(Self {
            folder,
            keys: ArcSwap::from_pointee(keys),
            reading: Mutex::default(),
            cluster_id,
            node_life: issue::NODE_LIFE,
            server_life: issue::SERVER_LIFE,
        })
    }

    /// Sets how long nodes' certificates live (24 hours unless told otherwise).
    #[must_use]
    pub fn with_node_life(mut self, life: Duration) -> Self {
        self.node_life = life;
        self
    }

    /// Sets how long servers' certificates live (30 days unless told otherwise).
    #[must_use]
    pub fn with_server_life(mut self, life: Duration) -> Self {
        self.server_life = life;
        self
    }

    /// The cluster that this authority speaks for.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// All roots that are trusted now, as PEM.
    pub fn trust_pem(&self) -> String {
        encoding::pem_of(&self.keys.load().roots)
    }

    /// SHA-256 of the root, in lower-case hexadecimal: what a join token pins.
    pub fn fingerprint(&self) -> String {
        encoding::sha256_hex(&self.keys.load().roots[0])
    }

    /// By which certificates that this authority signs now name the key that has signed them.
    pub fn issuer_key(&self) -> String {
        self.keys.load().generations[0].issuer_key.clone()
    }

    /// Whether what this key has signed counts no more: its authority has retired. Of one from files of your own that
    /// cannot be told from another intermediate below the same root.
    pub fn has_retired(&self, issuer_key: &str) -> bool {
        let is_known = |generation: &Generation| generation.issuer_key == issuer_key;
        self.folder.is_some() && !self.keys.load().generations.iter().any(is_known)
    }

    /// Tells sets of trusted roots apart: see [`crate::trust_digest`].
    pub fn trust_digest(&self) -> String {
        encoding::digest_of(&self.keys.load().roots)
    }
}

/// The key of a chain's first certificate, if all of it holds together.
pub(crate) fn issuer(
    chain: &[CertificateDer<'static>],
    key_pem: &str,
    what: &str,
) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let key = KeyPair::from_pem(key_pem).map_err(|error| {
        let way_out = match key_pem {
            text if text.contains("ENCRYPTED") => "; it is encrypted, and there is nobody to ask: store it without a password, 0600",
            text if text.contains("BEGIN EC PRIVATE KEY") => "; it must be PKCS #8: `step crypto key format --pkcs8` or `openssl pkcs8 -topk8 -nocrypt` turns it into that",
            _ => "",
        };
        PkiError::invalid(what, format!("its key is not a private key in PEM ({error}){way_out}"))
    })?;
    check_chain(chain, &key, what)?;
    Ok(Issuer::from_ca_cert_der(&chain[0], key)?)
}

/// Every certificate must be an authority's, signed by the next, ending in one that signed itself, and the
/// key must be the first one's.
fn check_chain(chain: &[CertificateDer<'_>], key: &KeyPair, what: &str) -> Result<(), PkiError> {
    let parsed: Vec<_> = chain.iter().map(|der| peer::parse(der)).collect::<Result<_, _>>()?;
    for (position, certificate) in parsed.iter().enumerate() {
        if !certificate.is_ca() {
            return Err(PkiError::invalid(
                what,
                format!("certificate {} is no authority (CA:true)", position + 1),
            ));
        }
        let above = parsed.get(position + 1).unwrap_or(certificate);
        if certificate.verify_signature(Some(above.public_key())).is_err() {
            return Err(PkiError::invalid(
                what,
                format!(
                    "certificate {} is not signed by what follows it; give the issuing certificate first, then those above it, and the root last",
                    position + 1
                ),
            ));
        }
    }
    if parsed[0].public_key().raw != key.subject_public_key_info() {
        return Err(PkiError::invalid(what, "the key belongs to another certificate"));
    }
    Ok(())
}

/// The cluster's id: what our own root says of itself, or the beginning of a foreign root's digest.
pub(crate) fn cluster_of(root: &CertificateDer<'_>) -> Result<String, PkiError> {
    let certificate = peer::parse(root)?;
    let own = peer::uris(&certificate)?
        .iter()
        .filter_map(|uri| uri.strip_prefix("rhyzome://"))
        .find(|id| peer::is_plain_id(id))
        .map(str::to_owned);
    Ok(own.unwrap_or_else(|| encoding::sha256_hex(root)[..16].to_owned()))
}
