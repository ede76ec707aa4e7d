//! How the making of every image begins and ends: its packages, and whether one made from them is there already.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;

use super::debs::Deb;
use super::stamp::Stamp;
use crate::progress::Progress;

/// What an image is made from, and where.
pub struct Recipe {
    /// Tells what goes on.
    pub progress: Progress,
    /// Debian's kernel for virtual machines.
    pub kernel: Deb,
    /// The package that makes this image what it is.
    pub main: Deb,
    /// The boot loader.
    pub syslinux: Deb,
    /// Where packages are kept.
    pub cache: PathBuf,
    /// A folder for the making, gone afterwards.
    pub work: TempDir,
    stamp: Stamp,
}

impl Recipe {
    /// Begins an image; `None` if the one at `out` is current. `sources` is whatever else has a say in what it is.
    pub fn begin(
        name: &str,
        main: &str,
        sources: &[&str],
        out: &Path,
        install: bool,
    ) -> Result<Option<Recipe>> {
        let progress = Progress::start(&format!("image {name}"));
        progress.step("asking apt for versions");
        let kernel = Deb::cloud_kernel(install)?;
        let main = Deb::candidate(main, install)?;
        let syslinux = Deb::candidate("syslinux", install)?;
        let ids = [kernel.id(), main.id(), syslinux.id()];
        let inputs: Vec<&str> = sources.iter().copied().chain(ids.iter().map(String::as_str)).collect();
        let stamp = Stamp::of(&inputs);
        if stamp.matches(out) {
            progress.done("current");
            return Ok(None);
        }
        let cache = crate::repository().join("var/cache/debs");
        fs::create_dir_all(&cache)?;
        let work = tempfile::Builder::new().prefix(&format!(".{name}")).tempdir_in(&cache)?;
        Ok(Some(Recipe { progress, kernel, main, syslinux, cache, work, stamp }))
    }

    /// The image at `out` is made.
    pub fn finish(self, out: &Path) -> Result<()> {
        self.stamp.write(out)?;
        self.progress.done(&format!("built, {} MiB", fs::metadata(out)?.len() >> 20));
        Ok(())
    }
}
