//! Who carries a tunnel's packets: the kernel, or a process of its own where the kernel has no WireGuard.

use super::kernel::Kernel;
use super::plan::{Change, Live};
use super::process::Userspace;
use crate::host::netns;
use std::io;
use std::path::Path;

/// Where a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The object's id.
    pub id: String,
    /// The interface's name.
    pub name: String,
    /// The namespace that it ends in; none: the node's own. Its UDP socket is the node's in any case.
    pub namespace: Option<String>,
}

/// One kind of device. All of it blocks, and finds out by looking what is there.
pub trait Engine: Send + Sync {
    /// "kernel" or "userspace".
    fn word(&self) -> &'static str;

    /// Makes the device if it is not there, for packets of this size. True if it was made: it holds nothing then.
    fn ensure(&self, place: &Place, mtu: u32) -> io::Result<bool>;

    /// What it holds; none if it is not there.
    fn get(&self, place: &Place) -> io::Result<Option<Live>>;

    /// One message that changes this and nothing else.
    fn set(&self, place: &Place, change: &Change) -> io::Result<()>;

    /// Leaves nothing of it. Nothing happens if it is gone.
    fn remove(&self, place: &Place) -> io::Result<()>;
}

/// What this machine has, by trying it.
pub fn choose(state: &Path) -> io::Result<Box<dyn Engine>> {
    let Err(no_kernel) = Kernel::probe() else { return Ok(Box::new(Kernel)) };
    match Userspace::probe() {
        Ok(()) => Ok(Box::new(Userspace::new(state))),
        Err(no_tun) => Err(io::Error::other(format!(
            "the kernel has no WireGuard ({no_kernel}), and a device of our own needs /dev/net/tun ({no_tun}): \
             load the kernel module wireguard or tun"
        ))),
    }
}

/// "kernel" or "userspace", and why, for the node's status.
pub fn probe() -> io::Result<String> {
    match Kernel::probe() {
        Ok(()) => Ok("kernel".into()),
        Err(why) => Userspace::probe().map(|()| format!("userspace (the kernel has none: {why})")),
    }
}

/// Does this where the device ends, on a thread of its own.
pub fn inside<T: Send>(
    namespace: Option<&str>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    match namespace {
        Some(namespace) => netns::run_in(namespace, work),
        None => netns::on_own_thread(work),
    }
}
