//! Exchanging the authority while all who trust it stay connected.
//!
//! Three steps, each one file that is put in place of another, so that of a crash in between nothing is seen:
//!
//! - **prepared**: there is a new root with an intermediate. Both roots are trusted, the old one signs.
//! - **activated**: the new one signs. The old root, which has signed the new intermediate as well, is still trusted, and
//!   servers show both ways up: whoever knows either root believes them.
//! - **retired**: the old root is trusted no more, and its keys are gone.
//!
//! Whoever holds the authority finds by [`Authority::refresh`] what another process has done.
use crate::authority::{self, Authority, Keys};
use crate::{PkiError, certificate_times, encoding, files, issue, peer};
use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

const RECORD: &str = "rotation.json";
const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const INTERMEDIATE: &str = "intermediate.pem";
const INTERMEDIATE_KEY: &str = "intermediate.key";
/// The intermediate's key, signed by the root before.
const CROSS: &str = "cross.pem";
const ALL: [&str; 5] = [ROOT_KEY, INTERMEDIATE_KEY, INTERMEDIATE, CROSS, ROOT];

/// Where an exchange of the authority stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// There is one authority.
    Settled,
    /// There is another, which is trusted and does not sign yet.
    Prepared,
    /// The other one signs; the one before is still trusted.
    Activated,
}

/// What an authority among others is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It signs.
    Signs,
    /// It will.
    Next,
    /// It did.
    Previous,
}

/// A root with its intermediate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// What it is there for.
    pub role: Role,
    /// SHA-256 of its root, lower-case hexadecimal.
    pub root_sha256: String,
    /// By which certificates name the key that has signed them, lower-case hexadecimal: see [`crate::issuer_key`].
    pub issuer_key: String,
    /// When its root ends.
    pub root_ends: SystemTime,
    /// When its intermediate ends.
    pub issuer_ends: SystemTime,
}

/// Which generations there are. What cannot be read is no authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Record {
    /// Empty: the one that the cluster began with.
    issuing: String,
    next: Option<String>,
    previous: Option<String>,
    /// Seconds since 1970.
    since: u64,
}

/// `root.pem`, or `root-1a2b3c4d.pem`.
fn named(kind: &str, generation: &str) -> String {
    match kind.split_once('.') {
        Some((stem, end)) if !generation.is_empty() => format!("{stem}-{generation}.{end}"),
        _ => kind.to_owned(),
    }
}

/// Holds the authority's folder until it is dropped: nothing in it changes, and a copy of it is one of one moment.
pub fn hold(folder: &Path) -> Result<File, PkiError> {
    let failed = |source| PkiError::File { action: "lock", path: folder.to_owned(), source };
    let held = File::open(folder).map_err(failed)?;
    held.lock().map_err(failed)?;
    Ok(held)
}

// === impl Record ===

impl Record {
    pub(crate) fn read(folder: &Path) -> Result<Record, PkiError> {
        let path = folder.join(RECORD);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                let what = format!("not a record of this program's ({error}); bring it back from the backup");
                PkiError::invalid(path.display().to_string(), what)
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Record::default()),
            Err(source) => Err(PkiError::File { action: "read", path, source }),
        }
    }

    fn write(&self, folder: &Path) -> Result<(), PkiError> {
        let path = folder.join(RECORD);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| PkiError::invalid(path.display().to_string(), error.to_string()))?;
        files::write_private(&path, &text)
    }

    pub(crate) fn phase(&self) -> Phase {
        match (&self.next, &self.previous) {
            (Some(_), _) => Phase::Prepared,
            (None, Some(_)) => Phase::Activated,
            (None, None) => Phase::Settled,
        }
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.issuing).chain(&self.next).chain(&self.previous)
    }

    /// Takes away what no generation is: of one that was never finished, or has retired.
    fn sweep(&self, folder: &Path) -> Result<(), PkiError> {
        let failed = |source| PkiError::File { action: "tidy up", path: folder.to_owned(), source };
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            let of = |generation: &String| ALL.iter().any(|kind| named(kind, generation) == name);
            let is_ours = ALL.iter().any(|kind| is_of_kind(&name, kind));
            if is_ours && !self.names().any(of) {
                std::fs::remove_file(folder.join(&name)).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// True for `root.pem` and `root-1a2b3c4d.pem`, if the kind is `root.pem`.
fn is_of_kind(name: &str, kind: &str) -> bool {
    let Some((stem, end)) = kind.split_once('.') else { return false };
    let generation = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(end)?.strip_suffix('.'));
    match generation {
        Some("") => true,
        Some(rest) => rest.strip_prefix('-').is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())),
        None => false,
    }
}

// === reading ===

fn certificates(
    folder: &Path,
    kind: &str,
    generation: &str,
) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let path = folder.join(named(kind, generation));
    encoding::certificates(&files::read(&path)?, &path.display().to_string())
}

/// What the record says there is, from its files.
pub(crate) fn read(folder: &Path, record: Record) -> Result<Keys, PkiError> {
    let mut chain = certificates(folder, INTERMEDIATE, &record.issuing)?;
    let root = certificates(folder, ROOT, &record.issuing)?.swap_remove(0);
    let key = folder.join(named(INTERMEDIATE_KEY, &record.issuing));
    let mut roots = vec![root.clone()];
    let mut generations = vec![generation(Role::Signs, &root, &chain[0])?];
    let mut beside = Vec::new();
    if let Some(next) = &record.next {
        let root = certificates(folder, ROOT, next)?.swap_remove(0);
        let intermediate = certificates(folder, INTERMEDIATE, next)?;
        generations.push(generation(Role::Next, &root, &intermediate[0])?);
        roots.push(root);
    }
    if let Some(previous) = &record.previous {
        let root = certificates(folder, ROOT, previous)?.swap_remove(0);
        let intermediate = certificates(folder, INTERMEDIATE, previous)?;
        generations.push(generation(Role::Previous, &root, &intermediate[0])?);
        beside = certificates(folder, CROSS, &record.issuing)?;
        beside.push(root.clone());
        roots.push(root);
    }
    chain.push(root);
    let what = folder.join(named(INTERMEDIATE, &record.issuing)).display().to_string();
    let issuer = authority::issuer(&chain, &files::read_key(&key)?, &what)?;
    Ok(Keys { issuer, chain, beside, roots, generations, record, edition: 0 })
}

/// What is known of a root and the certificate below it that signs.
pub(crate) fn generation(
    role: Role,
    root: &CertificateDer<'_>,
    issuing: &CertificateDer<'_>,
) -> Result<Generation, PkiError> {
    Ok(Generation {
        role,
        root_sha256: encoding::sha256_hex(root),
        issuer_key: peer::own_key(issuing)?,
        root_ends: certificate_times(root)?.not_after,
        issuer_ends: certificate_times(issuing)?.not_after,
    })
}

/// Writes a new generation that nobody knows of yet.
fn write(folder: &Path, name: &str, new: &issue::NewAuthority) -> Result<(), PkiError> {
    let put = |kind: &str, text: &str| files::write_private(&folder.join(named(kind, name)), text.as_bytes());
    put(ROOT_KEY, &new.root_key_pem)?;
    put(ROOT, &new.root_pem)?;
    put(INTERMEDIATE_KEY, &new.intermediate_key_pem)?;
    put(INTERMEDIATE, &new.intermediate_pem)?;
    new.cross_pem.as_deref().map_or(Ok(()), |cross| put(CROSS, cross))
}

/// The first of a cluster.
pub(crate) fn write_first(folder: &Path, new: &issue::NewAuthority) -> Result<(), PkiError> {
    write(folder, "", new)
}

// === impl Authority ===

impl Authority {
    /// Looks whether another process has gone on with an exchange. The number rises whenever something is new.
    pub fn refresh(&self) -> Result<u64, PkiError> {
        let Some(folder) = &self.folder else { return Ok(0) };
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let record = Record::read(folder)?;
        let known = self.keys.load();
        if record == known.record {
            return Ok(known.edition);
        }
        let keys = Keys { edition: known.edition + 1, ..read(folder, record)? };
        if authority::cluster_of(&keys.roots[0])? != self.cluster_id() {
            return Err(PkiError::invalid(folder.display().to_string(), "it is another cluster's by now"));
        }
        let edition = keys.edition;
        self.keys.store(Arc::new(keys));
        Ok(edition)
    }

    /// Where an exchange stands, as far as this process knows.
    pub fn phase(&self) -> Phase {
        self.keys.load().record.phase()
    }

    /// Since when.
    pub fn since(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.keys.load().record.since)
    }

    /// All that are trusted; the one that signs is the first.
    pub fn generations(&self) -> Vec<Generation> {
        self.keys.load().generations.clone()
    }

    /// Makes another root, with an intermediate that the present root has signed as well. False: an exchange is under way.
    pub fn prepare(&self, now: SystemTime) -> Result<bool, PkiError> {
        self.go_on(now, |folder, record| {
            if record.phase() != Phase::Settled {
                return Ok(None);
            }
            let path = folder.join(named(ROOT_KEY, &record.issuing));
            let key = files::read_key(&path).map_err(|error| {
                let what = format!(
                    "the present root must sign what follows it ({error}); put its key back for that"
                );
                PkiError::invalid(path.display().to_string(), what)
            })?;
            let root = certificates(folder, ROOT, &record.issuing)?.swap_remove(0);
            let elder = Issuer::from_ca_cert_der(&root, KeyPair::from_pem(&key)?)?;
            let elder_ends = certificate_times(&root)?.not_after;
            // Only now, when the present one was found: without its record it would be swept away itself.
            record.sweep(folder)?;
            let name = encoding::hex(&encoding::random::<4>()?);
            let new = issue::new_authority(self.cluster_id(), now, Some((&elder, elder_ends)))?;
            write(folder, &name, &new)?;
            Ok(Some(Record { next: Some(name), ..record.clone() }))
        })
    }

    /// The other one signs from now on. False: none is prepared.
    pub fn activate(&self, now: SystemTime) -> Result<bool, PkiError> {
        self.go_on(now, |_, record| {
            let Some(next) = record.next.clone() else { return Ok(None) };
            Ok(Some(Record { issuing: next, next: None, previous: Some(record.issuing.clone()), since: 0 }))
        })
    }

    /// The one before is trusted no more, and its keys are taken away. False: none is left.
    pub fn retire(&self, now: SystemTime) -> Result<bool, PkiError> {
        let retired = self.go_on(now, |_, record| {
            let left = Record { issuing: record.issuing.clone(), ..Record::default() };
            Ok((record.phase() == Phase::Activated).then_some(left))
        })?;
        if let (true, Some(folder)) = (retired, &self.folder) {
            let _held = hold(folder)?;
            Record::read(folder)?.sweep(folder)?;
        }
        Ok(retired)
    }

    /// One step, and one only of several processes that want it at once.
    fn go_on(
        &self,
        now: SystemTime,
        step: impl FnOnce(&Path, &Record) -> Result<Option<Record>, PkiError>,
    ) -> Result<bool, PkiError> {
        let Some(folder) = &self.folder else {
            let why = "it is from files of your own (`pki.ca`): exchange it there, see docs/pki.md";
            return Err(PkiError::invalid("the authority", why));
        };
        let held = hold(folder)?;
        let next = step(folder, &Record::read(folder)?)?;
        if let Some(mut record) = next.clone() {
            record.since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            record.write(folder)?;
        }
        drop(held);
        self.refresh()?;
        Ok(next.is_some())
    }
}
