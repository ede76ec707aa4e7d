//! Keys and what is done with them: AES-256-GCM by ring, a random nonce before each sealed value. A key's name is the
//! beginning of a hash of it: nobody chooses it, and nobody can give it to another key.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{Flock, FlockArg};
use rhyzome_pki::{hex, write_private};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::kernel::secret::Plain;
use crate::kernel::{Env, Error};
use crate::store::{Sealed, Vault};

const KEY_LENGTH: usize = 32;
const HEADER: &str = "# Rhyzome's sealing keys, one a line; the last one seals. Without them secrets in the database are lost.\n";

/// Where the keys are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In this file: read again when it has changed.
    File(PathBuf),
    /// In the configuration: the same until the server is started anew.
    Given(Plain),
}

/// All keys that are known.
pub struct Keyring {
    source: Source,
    keys: RwLock<Arc<Keys>>,
}

/// One key.
struct Key {
    name: String,
    line: Zeroizing<String>,
    key: LessSafeKey,
}

/// The oldest first.
type Keys = Vec<Key>;

impl Keyring {
    /// Makes the file with a first key, 0600, unless it is there.
    pub fn make(path: &Path, env: &Env) -> anyhow::Result<()> {
        // Whoever only starts does not wait for a backup.
        if path.exists() {
            return Ok(());
        }
        let _alone = locked(path, FlockArg::LockExclusive)?;
        if !path.exists() {
            write_private(path, format!("{HEADER}{}\n", *fresh(env)).as_bytes())?;
        }
        Ok(())
    }

    /// The keys that are there.
    pub fn open(source: Source) -> anyhow::Result<Keyring> {
        let keys = Arc::new(read(&source)?);
        Ok(Keyring { source, keys: RwLock::new(keys) })
    }

    /// Reads them again; true if they are others than before.
    pub fn reload(&self) -> anyhow::Result<bool> {
        if let Source::Given(_) = self.source {
            return Ok(false);
        }
        let keys = read(&self.source)?;
        let same = self.keys().iter().map(|key| &key.name).eq(keys.iter().map(|key| &key.name));
        if !same {
            *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        }
        Ok(!same)
    }

    /// Adds a key that seals from now on; its name.
    pub fn add(&self, env: &Env) -> anyhow::Result<String> {
        let path = self.file()?;
        let _alone = locked(path, FlockArg::LockExclusive)?;
        self.reload()?;
        let line = fresh(env);
        self.write(path, self.keys().iter().map(|key| &*key.line).chain([&*line]))?;
        self.reload()?;
        Ok(self.newest())
    }

    /// Takes the keys away that are neither used nor the newest; their names. Refused soon after the last change: a
    /// server that has not seen it yet may still seal with an older one.
    pub fn forget(&self, used: impl Fn(&str) -> bool, after: Duration) -> anyhow::Result<Vec<String>> {
        let path = self.file()?;
        let _alone = locked(path, FlockArg::LockExclusive)?;
        self.reload()?;
        let (keys, newest) = (self.keys(), self.newest());
        let (stay, go): (Vec<&Key>, Vec<&Key>) =
            keys.iter().partition(|key| key.name == newest || used(&key.name));
        if go.is_empty() {
            return Ok(Vec::new());
        }
        let age = std::fs::metadata(path)?.modified()?.elapsed().unwrap_or_default();
        if age < after {
            bail!("a key was added a moment ago: wait until all servers have it, {} s", after.as_secs());
        }
        self.write(path, stay.iter().map(|key| &*key.line))?;
        let names = go.iter().map(|key| key.name.clone()).collect();
        self.reload()?;
        Ok(names)
    }

    /// Names of all keys, the oldest first.
    pub fn names(&self) -> Vec<String> {
        self.keys().iter().map(|key| key.name.clone()).collect()
    }

    /// Where they are.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Where they are, in words.
    pub fn place(&self) -> String {
        match &self.source {
            Source::File(path) => path.display().to_string(),
            Source::Given(_) => "`sealing.keys` in the configuration".to_owned(),
        }
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn file(&self) -> anyhow::Result<&Path> {
        match &self.source {
            Source::File(path) => Ok(path),
            Source::Given(_) => {
                bail!(
                    "the keys are in the configuration (`sealing.keys`): add one at its end there, and start the servers \
                     anew one by one"
                )
            }
        }
    }

    fn write<'a>(&self, path: &Path, lines: impl Iterator<Item = &'a String>) -> anyhow::Result<()> {
        let mut text = Zeroizing::new(HEADER.to_owned());
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        Ok(write_private(path, text.as_bytes())?)
    }
}

impl Vault for Keyring {
    fn newest(&self) -> String {
        self.keys().last().map(|key| key.name.clone()).unwrap_or_default()
    }

    fn knows(&self, name: &str) -> bool {
        self.keys().iter().any(|key| key.name == name)
    }

    fn seal(&self, nonce: [u8; 12], bound_to: &[u8], plain: &[u8]) -> Result<Sealed, Error> {
        let keys = self.keys();
        let key = keys.last().ok_or_else(|| Error::Internal("there is no sealing key".to_owned()))?;
        let mut bytes = nonce.to_vec();
        let mut inner = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.key
            .seal_in_place_append_tag(nonce, Aad::from(bound_to), &mut inner)
            .map_err(|_| Error::Internal("a secret cannot be sealed: it is too long".to_owned()))?;
        bytes.append(&mut inner);
        Ok(Sealed { key: key.name.clone(), bytes })
    }

    fn open(&self, name: &str, bound_to: &[u8], sealed: &[u8]) -> Result<Plain, Error> {
        let find = |keys: &Keys| keys.iter().position(|key| key.name == name);
        let mut keys = self.keys();
        if find(&keys).is_none() {
            // Another server may have got a new key before us.
            self.reload().map_err(|error| Error::Internal(format!("the sealing keys: {error:#}")))?;
            keys = self.keys();
        }
        let key = find(&keys).map(|at| &keys[at]);
        let key = key.ok_or_else(|| Error::Internal(format!("the sealing key {name} is not known")))?;
        let damaged = || Error::Internal("a sealed secret was damaged, or put elsewhere".to_owned());
        let (nonce, inner) = sealed.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut inner = Zeroizing::new(inner.to_vec());
        let plain = key.key.open_in_place(nonce, Aad::from(bound_to), &mut inner).map_err(|_| damaged())?;
        let text = std::str::from_utf8(plain).map_err(|_| damaged())?;
        Ok(Plain::new(text.to_owned()))
    }
}

/// Nobody adds or takes away a key as long as this is held: what is read of the database meanwhile can be opened with the
/// keys that are in the file at the end.
pub fn hold(path: &Path) -> anyhow::Result<Flock<File>> {
    locked(path, FlockArg::LockShared)
}

/// Whoever changes the file is alone: of two that add a key at once, both are kept.
fn locked(path: &Path, how: FlockArg) -> anyhow::Result<Flock<File>> {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&lock);
    let file = file.with_context(|| format!("{} cannot be opened", Path::new(&lock).display()))?;
    Flock::lock(file, how)
        .map_err(|(_, error)| anyhow::anyhow!("{} cannot be locked: {error}", Path::new(&lock).display()))
}

/// A new key, as it stands in the file.
fn fresh(env: &Env) -> Zeroizing<String> {
    let key: Zeroizing<[u8; KEY_LENGTH]> = Zeroizing::new(env.bytes());
    Zeroizing::new(STANDARD.encode(*key))
}

fn read(source: &Source) -> anyhow::Result<Keys> {
    let (text, place) = match source {
        Source::Given(keys) => (Zeroizing::new(keys.reveal().to_owned()), "`sealing.keys`".to_owned()),
        Source::File(path) => {
            let place = path.display().to_string();
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| format!("the sealing keys {place} cannot be read"))?;
            refuse_exposed(path)?;
            (Zeroizing::new(text), place)
        }
    };
    let mut keys: Keys = Vec::new();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    for line in lines.flat_map(|line| line.split(',')).map(str::trim).filter(|key| !key.is_empty()) {
        let bytes = Zeroizing::new(STANDARD.decode(line).unwrap_or_default());
        let Ok(key) = UnboundKey::new(&AES_256_GCM, &bytes) else {
            bail!("key {} in {place} is not {KEY_LENGTH} bytes in base64", keys.len() + 1);
        };
        // Piece by piece: nothing is left of the key that nobody wipes.
        let digest = Sha256::new().chain_update(b"rhyzome-sealing-key-1").chain_update(&*bytes).finalize();
        let name = hex(&digest[..8]);
        keys.push(Key { name, line: Zeroizing::new(line.to_owned()), key: LessSafeKey::new(key) });
    }
    if keys.is_empty() {
        bail!("there is no sealing key in {place}: put {KEY_LENGTH} random bytes in base64 there");
    }
    Ok(keys)
}

fn refuse_exposed(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o007 != 0 {
        bail!("the sealing keys {} can be read by everybody: `chmod 600` it", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::environment::system_env;

    fn open(path: &Path) -> Keyring {
        Keyring::open(Source::File(path.to_owned())).unwrap()
    }

    #[test]
    fn what_is_sealed_is_opened_where_it_belongs_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sealing.keys");
        Keyring::make(&path, &system_env()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let keyring = open(&path);
        let sealed = keyring.seal(system_env().bytes(), b"here", b"hush").unwrap();
        assert!(!sealed.bytes.windows(4).any(|part| part == b"hush"));
        assert_eq!(keyring.open(&sealed.key, b"here", &sealed.bytes).unwrap().reveal(), "hush");
        assert!(keyring.open(&sealed.key, b"there", &sealed.bytes).is_err());
        for at in 0..sealed.bytes.len() {
            let mut flipped = sealed.bytes.clone();
            flipped[at] ^= 1;
            assert!(keyring.open(&sealed.key, b"here", &flipped).is_err(), "byte {at}");
            assert!(keyring.open(&sealed.key, b"here", &sealed.bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_new_key_seals_and_the_old_one_still_opens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sealing.keys");
        Keyring::make(&path, &system_env()).unwrap();
        Keyring::make(&path, &system_env()).unwrap();
        let (keyring, other) = (open(&path), open(&path));
        let old = keyring.newest();
        let sealed = keyring.seal([0; 12], b"", b"hush").unwrap();
        let new = keyring.add(&system_env()).unwrap();
        assert_eq!(keyring.names(), [old.clone(), new.clone()]);
        assert_eq!(keyring.open(&old, b"", &sealed.bytes).unwrap().reveal(), "hush");
        // Who has not looked yet looks when it meets the new one.
        let newer = keyring.seal([1; 12], b"", b"hush").unwrap();
        assert!(!other.knows(&new));
        assert_eq!(other.open(&new, b"", &newer.bytes).unwrap().reveal(), "hush");
        assert_eq!(other.newest(), new);

        assert!(keyring.forget(|_| false, Duration::from_secs(60)).is_err(), "too soon");
        assert_eq!(keyring.forget(|key| key == old, Duration::ZERO).unwrap(), Vec::<String>::new());
        assert_eq!(keyring.forget(|_| false, Duration::ZERO).unwrap(), std::slice::from_ref(&old));
        assert!(keyring.open(&old, b"", &sealed.bytes).is_err());
    }

    #[test]
    fn no_key_comes_or_goes_while_a_backup_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sealing.keys");
        Keyring::make(&path, &system_env()).unwrap();
        let (one, other) = (hold(&path).unwrap(), hold(&path).unwrap());
        let change = || locked(&path, FlockArg::LockExclusiveNonblock);
        assert!(change().is_err());
        drop(one);
        assert!(change().is_err());
        // Whoever only starts does not wait.
        Keyring::make(&path, &system_env()).unwrap();
        drop(other);
        assert!(change().is_ok());
    }

    #[test]
    fn one_clear_line_says_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let line = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            format!("{:#}", Keyring::open(Source::File(path.clone())).err().unwrap())
        };
        assert!(line("# nothing\n", 0o600).contains("no sealing key"));
        assert!(line("short\n", 0o600).contains("key 1 in"));
        assert!(line(&format!("{}\n", STANDARD.encode([7; 32])), 0o604).contains("chmod 600"));
        let given =
            Source::Given(Plain::new(format!("{},{}", STANDARD.encode([7; 32]), STANDARD.encode([8; 32]))));
        let keyring = Keyring::open(given).unwrap();
        assert_eq!(keyring.names().len(), 2);
        assert!(keyring.add(&system_env()).unwrap_err().to_string().contains("configuration"));
    }
}
