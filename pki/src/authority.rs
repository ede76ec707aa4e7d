//! The cluster's authority: a root, and the intermediate under it that signs.
use crate::{PkiError, encoding, files, issue, peer};
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use std::path::Path;
use std::time::{Duration, SystemTime};

const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const INTERMEDIATE: &str = "intermediate.pem";
const INTERMEDIATE_KEY: &str = "intermediate.key";

/// What signs certificates for one cluster.
pub struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    /// The issuing certificate, then what is above it, then the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// All roots that are trusted now; the first is the one this authority's chain ends in.
    roots: Vec<CertificateDer<'static>>,
    cluster_id: String,
    pub(crate) node_life: Duration,
    pub(crate) server_life: Duration,
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
        Self::open(folder)
    }

    fn create(folder: &Path, now: SystemTime) -> Result<(), PkiError> {
        let mut draft = folder.as_os_str().to_owned();
        draft.push(format!(".{}.new", encoding::random_hex()?));
        let draft = Path::new(&draft);
        files::make_private_folder(draft)?;
        let new = issue::new_authority(&encoding::hex(&encoding::random::<8>()?), now)?;
        files::write_private(&draft.join(ROOT_KEY), new.root_key_pem.as_bytes())?;
        files::write_private(&draft.join(ROOT), new.root_pem.as_bytes())?;
        files::write_private(&draft.join(INTERMEDIATE_KEY), new.intermediate_key_pem.as_bytes())?;
        files::write_private(&draft.join(INTERMEDIATE), new.intermediate_pem.as_bytes())?;
        files::publish_folder(draft, folder)?;
        Ok(())
    }

    fn open(folder: &Path) -> Result<Self, PkiError> {
        let (root, intermediate) = (folder.join(ROOT), folder.join(INTERMEDIATE));
        let mut chain =
            encoding::certificates(&files::read(&intermediate)?, &intermediate.display().to_string())?;
        let roots = encoding::certificates(&files::read(&root)?, &root.display().to_string())?;
        chain.push(roots[0].clone());
        let key = folder.join(INTERMEDIATE_KEY);
        Self::assemble(chain, roots, &files::read_key(&key)?, &intermediate.display().to_string())
    }

    /// An authority of one's own: `cert` holds the issuing certificate, then those above it up to the root
    /// (or the root alone, if it issues itself); `key` the issuing certificate's key.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, PkiError> {
        Self::from_pem(&files::read(cert)?, &files::read_key(key)?, &cert.display().to_string())
    }

    /// The same from PEM texts; `what` names the certificate in errors.
    pub fn from_pem(cert_pem: &str, key_pem: &str, what: &str) -> Result<Self, PkiError> {
        let chain = encoding::certificates(cert_pem, what)?;
        let root = chain[chain.len() - 1].clone();
        Self::assemble(chain, vec![root], key_pem, what)
    }

    fn assemble(
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        key_pem: &str,
        what: &str,
    ) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| {
            PkiError::invalid(what, format!("its key is not a private key in PEM ({error})"))
        })?;
        check_chain(&chain, &key, what)?;
        let cluster_id = cluster_of(&roots[0])?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&chain[0], key)?,
            chain,
            roots,
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
        encoding::pem_of(&self.roots)
    }

    /// SHA-256 of the root, in lower-case hexadecimal: what a join token pins.
    pub fn fingerprint(&self) -> String {
        encoding::sha256_hex(&self.roots[0])
    }
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
fn cluster_of(root: &CertificateDer<'_>) -> Result<String, PkiError> {
    let certificate = peer::parse(root)?;
    let own = peer::uris(&certificate)?
        .iter()
        .filter_map(|uri| uri.strip_prefix("rhyzome://"))
        .find(|id| peer::is_plain_id(id))
        .map(str::to_owned);
    Ok(own.unwrap_or_else(|| encoding::sha256_hex(root)[..16].to_owned()))
}
