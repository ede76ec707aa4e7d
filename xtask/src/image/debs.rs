//! Debian packages as material: downloaded by apt-get and unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{packages, run};

/// A package, and the version that apt would install.
#[derive(Debug, Clone)]
pub struct Deb {
    /// Its name.
    pub name: String,
    version: String,
}

impl Deb {
    /// The version of `name` that apt knows now; refreshes apt's lists once if it knows none.
    pub fn candidate(name: &str, install: bool) -> Result<Deb> {
        if let Some(version) = candidate(name)? {
            return Ok(Deb { name: name.to_owned(), version });
        }
        if !install {
            bail!("apt knows no package {name}: run apt-get update");
        }
        packages::update()?;
        match candidate(name)? {
            Some(version) => Ok(Deb { name: name.to_owned(), version }),
            None => bail!(
                "apt knows no package {name}, even after apt-get update: this needs Debian's main archive"
            ),
        }
    }

    /// The kernel that `linux-image-cloud-amd64` stands for now.
    pub fn cloud_kernel(install: bool) -> Result<Deb> {
        let meta = Deb::candidate("linux-image-cloud-amd64", install)?;
        let depends = run::output(Command::new("apt-cache").args(["depends", &meta.name]))?;
        let name = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .context("linux-image-cloud-amd64 depends on no kernel")?;
        Deb::candidate(name, install)
    }

    /// Name and version, to be hashed.
    pub fn id(&self) -> String {
        format!("{}_{}", self.name, self.version.replace(':', "%3a"))
    }

    /// The folder with the package's files; kept under `cache` for the next time.
    pub fn unpack(&self, cache: &Path, install: bool) -> Result<PathBuf> {
        let folder = cache.join(self.id());
        if folder.exists() {
            return Ok(folder);
        }
        fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
        let work = tempfile::Builder::new().prefix(".deb").tempdir_in(cache)?;
        let wanted = format!("{}={}", self.name, self.version);
        let download =
            || run::output(Command::new("apt-get").args(["download", &wanted]).current_dir(work.path()));
        if let Err(error) = download() {
            if !install {
                return Err(error);
            }
            // Old lists name files that are gone from the mirror.
            packages::update()?;
            download()?;
        }
        let deb = fs::read_dir(work.path())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|end| end == "deb"))
            .with_context(|| format!("apt-get download left no file of {wanted}"))?;
        let files = work.path().join("files");
        run::output(Command::new("dpkg-deb").arg("--extract").args([&deb, &files]))?;
        fs::rename(&files, &folder)?;
        Ok(folder)
    }
}

fn candidate(name: &str) -> Result<Option<String>> {
    let policy = run::output(Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}
