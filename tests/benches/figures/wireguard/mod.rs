//! `wireguard`: ten thousand peers on one device, one more of them, and what passes through a tunnel beside Debian's
//! wireguard-go between the same two namespaces. All of it in namespaces of its own, which go with it.

mod peers;
mod tunnels;

use anyhow::{Result, bail};
use clap::Parser;
use rhyzome_agent::wireguard::device;
use xtask::bench::figure::{Figure, load};
use xtask::progress::Progress;

/// This very program is the device, too, as the agent is.
#[derive(Parser)]
struct AsDevice {
    #[command(flatten)]
    arguments: device::Arguments,
}

/// If this program was started as a device: how that ended.
pub fn as_device() -> Option<Result<()>> {
    let mut words = std::env::args_os();
    let program = words.next()?;
    words.next().filter(|word| word == "wireguard-device")?;
    let given = AsDevice::parse_from(std::iter::once(program).chain(words));
    Some(device::run(&given.arguments))
}

/// Measures; answers all figures.
pub fn run() -> Result<Vec<Figure>> {
    let progress = Progress::start("bench wireguard");
    // A namespace of its own stands for the machine's; what is started from its thread is in it.
    let measured = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            let mut figures = peers::run(&progress)?;
            figures.extend(tunnels::run(&progress)?);
            anyhow::Ok(figures)
        });
        thread.join().unwrap_or_else(|_| bail!("the bench panicked"))
    });
    progress.done(&format!("load {}", load()));
    measured
}
