//! `cargo xtask image`: guest images from Debian's own packages, bootable by firmware, built without root.

mod cpio;
mod debian;
mod debs;
mod disk;
mod modules;
mod recipe;
mod stamp;
mod tiny;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::packages;

/// Arguments of `cargo xtask image`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    which: Which,
    /// Install nothing: refuse when packages are missing, and say which
    #[arg(long, global = true)]
    no_install: bool,
}

#[derive(Subcommand)]
enum Which {
    /// A guest of kernel and busybox that boots in seconds
    Tiny(Target),
    /// A full Debian with cloud-init
    Debian(Target),
}

#[derive(Args)]
struct Target {
    /// Where the qcow2 goes [default: var/images/NAME.qcow2]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn main(arguments: Arguments) -> Result<()> {
    let install = !arguments.no_install;
    let path = match arguments.which {
        Which::Tiny(target) => tiny(target.out, install)?,
        Which::Debian(target) => debian(target.out, install)?,
    };
    println!("{}", path.display());
    Ok(())
}

/// Builds the tiny image, unless it is there and current; answers where it is.
pub fn tiny(out: Option<PathBuf>, install: bool) -> Result<PathBuf> {
    prepare(packages::IMAGE_TINY, install)?;
    let out = out.unwrap_or_else(|| default_path("tiny"));
    tiny::build(&out, install)?;
    Ok(out)
}

/// Builds the Debian image, unless it is there and current; answers where it is.
pub fn debian(out: Option<PathBuf>, install: bool) -> Result<PathBuf> {
    prepare(packages::IMAGE_DEBIAN, install)?;
    let out = out.unwrap_or_else(|| default_path("debian"));
    debian::build(&out, install)?;
    Ok(out)
}

fn prepare(set: packages::Set, install: bool) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return packages::ensure(&[set], install);
    }
    packages::ensure(&[set, packages::ROOTLESS], install)
}

fn default_path(name: &str) -> PathBuf {
    crate::repository().join("var/images").join(format!("{name}.qcow2"))
}
