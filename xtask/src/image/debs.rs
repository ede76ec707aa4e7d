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
        let mark = cache.join(format!("{}.whole", self.id()));
        if is_whole(&folder, &mark) {
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
        keep(&files, &folder, &mark)?;
        Ok(folder)
    }
}

/// Puts unpacked files in their place, whatever was left of them there. The mark comes last.
fn keep(files: &Path, folder: &Path, mark: &Path) -> Result<()> {
    for old in [mark, folder] {
        let gone = if old.is_dir() { fs::remove_dir_all(old) } else { fs::remove_file(old) };
        match gone {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot take {} away", old.display()));
            }
            _ => {}
        }
    }
    let size = size(files)?;
    fs::rename(files, folder)?;
    fs::write(mark, size)?;
    Ok(())
}

/// A folder that was copied, or deleted, half way is there as well: what it holds must be as much as its mark says.
fn is_whole(folder: &Path, mark: &Path) -> bool {
    let said = fs::read_to_string(mark).ok();
    said.is_some() && size(folder).ok() == said
}

/// How many files and folders, and how many bytes.
fn size(folder: &Path) -> Result<String> {
    let (mut count, mut bytes, mut folders) = (0_u64, 0_u64, vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            count += 1;
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += meta.len();
            }
        }
    }
    Ok(format!("{count} files, {bytes} bytes\n"))
}

fn candidate(name: &str) -> Result<Option<String>> {
    let policy = run::output(Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_half_way_is_not_taken_for_whole() {
        let cache = tempfile::tempdir().unwrap();
        let (files, folder) = (cache.path().join(".deb/files"), cache.path().join("p_1"));
        let mark = cache.path().join("p_1.whole");
        let unpacked = || {
            fs::create_dir_all(files.join("usr/lib")).unwrap();
            fs::write(files.join("usr/lib/a"), "one").unwrap();
            fs::write(files.join("usr/lib/b"), "two").unwrap();
        };
        // As somebody has left it who was interrupted, or who knew of no marks.
        fs::create_dir_all(folder.join("usr")).unwrap();
        assert!(!is_whole(&folder, &mark));
        unpacked();
        keep(&files, &folder, &mark).unwrap();
        assert!(is_whole(&folder, &mark) && folder.join("usr/lib/b").exists());
        fs::remove_file(folder.join("usr/lib/b")).unwrap();
        assert!(!is_whole(&folder, &mark), "a file is missing");
        unpacked();
        keep(&files, &folder, &mark).unwrap();
        fs::write(folder.join("usr/lib/a"), "on").unwrap();
        assert!(!is_whole(&folder, &mark), "a file is cut off");
        fs::remove_dir_all(&folder).unwrap();
        assert!(!is_whole(&folder, &mark));
    }
}
