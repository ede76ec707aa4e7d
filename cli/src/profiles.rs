//! Logins that were kept: one file each, which only its owner can read, in the folder for that of the user.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// The one that is meant when none is named.
pub const DEFAULT: &str = "default";

/// A login at a server, by an OpenID provider.
#[derive(Clone, Serialize, Deserialize)]
pub struct Profile {
    /// Of the API.
    pub url: String,
    /// PEM of the authority that is believed there.
    pub ca: Option<PathBuf>,
    /// Where one logged in.
    pub issuer: String,
    /// As which client.
    pub client_id: String,
    /// Where tokens are renewed.
    pub token_endpoint: String,
    /// Where they are given back, if that can be done.
    pub revocation_endpoint: Option<String>,
    /// What is shown to the API.
    pub access_token: String,
    /// With what it is renewed.
    pub refresh_token: Option<String>,
    /// Until when it is good: seconds since 1970.
    pub expires_at: i64,
}

/// Where they are.
#[derive(Clone, Debug)]
pub struct Profiles(PathBuf);

/// Held while a profile is changed, so that a refresh token is used once.
pub struct Held(#[expect(dead_code, reason = "held")] Flock<File>);

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile")
            .field("url", &self.url)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl Profiles {
    /// Those in this folder.
    pub fn new(folder: PathBuf) -> Profiles {
        Profiles(folder)
    }

    /// The one of this name, if there is one.
    pub fn read(&self, name: &str) -> anyhow::Result<Option<Profile>> {
        let path = self.path(name)?;
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("{} cannot be read", path.display()))?,
        };
        let broken = || format!("{} is no login: `rhyzome logout` forgets it", path.display());
        serde_json::from_str(&text).map(Some).with_context(broken)
    }

    /// Keeps it, whole or not at all.
    pub fn write(&self, name: &str, profile: &Profile) -> anyhow::Result<()> {
        let path = self.path(name)?;
        let failed = || format!("{} cannot be written", path.display());
        self.folder()?;
        let beside = path.with_extension("new");
        // One that was left behind may have been opened by others: a new file, or none.
        let _ = fs::remove_file(&beside);
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&beside).with_context(failed)?;
        file.write_all(format!("{}\n", serde_json::to_string_pretty(profile)?).as_bytes())
            .with_context(failed)?;
        file.sync_all().with_context(failed)?;
        fs::rename(&beside, &path).with_context(failed)
    }

    /// Forgets it.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} cannot be removed", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Waits until nobody else changes it.
    pub fn hold(&self, name: &str) -> anyhow::Result<Held> {
        self.folder()?;
        let path = self.path(name)?.with_extension("lock");
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("{} cannot be opened", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(held) => Ok(Held(held)),
            Err((_, error)) => bail!("{} cannot be locked: {error}", path.display()),
        }
    }

    fn folder(&self) -> anyhow::Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.with_context(|| format!("{} cannot be made", self.0.display()))
    }

    fn path(&self, name: &str) -> anyhow::Result<PathBuf> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 63 || !name.chars().all(good) {
            bail!("`{name}` is no name of a profile: letters, digits, `-` and `_`");
        }
        Ok(self.0.join(format!("{name}.json")))
    }
}

#[cfg(test)]
pub mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    /// A login that is good until then.
    pub fn profile(url: &str) -> Profile {
        Profile {
            url: url.into(),
            ca: None,
            issuer: "https://id.example".into(),
            client_id: "cli".into(),
            token_endpoint: "https://id.example/token".into(),
            revocation_endpoint: None,
            access_token: "at".into(),
            refresh_token: Some("rt".into()),
            expires_at: 1,
        }
    }

    #[test]
    fn a_login_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let profiles = Profiles::new(folder.path().join("a/profiles"));
        assert!(profiles.read(DEFAULT).unwrap().is_none());
        profiles.write(DEFAULT, &profile("http://one")).unwrap();
        profiles.write(DEFAULT, &profile("http://two")).unwrap();
        assert_eq!(profiles.read(DEFAULT).unwrap().unwrap().url, "http://two");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&profiles.path(DEFAULT).unwrap()), 0o600);
        assert_eq!(mode(&folder.path().join("a/profiles")), 0o700);
        drop(profiles.hold(DEFAULT).unwrap());
        profiles.remove(DEFAULT).unwrap();
        profiles.remove(DEFAULT).unwrap();
        assert!(profiles.read(DEFAULT).unwrap().is_none());
    }

    #[test]
    fn a_name_leads_nowhere_else_and_nothing_is_printed() {
        let folder = tempfile::tempdir().unwrap();
        let profiles = Profiles::new(folder.path().into());
        for bad in ["", "../x", "a/b", "a.b", &"x".repeat(64)] {
            assert!(profiles.read(bad).is_err(), "{bad}");
        }
        fs::write(folder.path().join("broken.json"), "{").unwrap();
        let said = profiles.read("broken").unwrap_err().to_string();
        assert!(said.contains("rhyzome logout"), "{said}");
        let shown = format!("{:?}", profile("http://one"));
        assert!(!shown.contains("at\"") && !shown.contains("rt"), "{shown}");
    }
}
