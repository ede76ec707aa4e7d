//! Who carries a tunnel's packets: the kernel, or a process of its own where the kernel has no WireGuard.

use super::kernel::Kernel;
use super::plan::{Change, Live};
use super::process::Userspace;
use crate::host::netns;
use serde::Deserialize;
use std::io;
use std::path::Path;

/// What the operator wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// The kernel where it has WireGuard, else processes.
    #[default]
    Auto,
    /// The kernel, or nothing.
    Kernel,
    /// Processes, whatever the kernel has.
    Userspace,
}

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

/// What is wanted, or what this machine has, by trying it.
pub fn choose(wanted: Wanted, state: &Path) -> io::Result<Box<dyn Engine>> {
    let (kernel, userspace) = (Box::new(Kernel), Box::new(Userspace::new(state)));
    Ok(match try_out(wanted)? {
        Found::Kernel => Box::new(Moved { to: kernel, from: userspace }),
        Found::Userspace(_) => Box::new(Moved { to: userspace, from: kernel }),
    })
}

/// "kernel" or "userspace", and why, for the node's status.
pub fn probe(wanted: Wanted) -> io::Result<String> {
    let configured = if wanted == Wanted::Auto { "" } else { " (configured)" };
    try_out(wanted).map(|found| match found {
        Found::Kernel => format!("kernel{configured}"),
        Found::Userspace(None) => format!("userspace{configured}"),
        Found::Userspace(Some(why)) => format!("userspace (the kernel has none: {why})"),
    })
}

enum Found {
    Kernel,
    /// Why not the kernel, if that was asked.
    Userspace(Option<io::Error>),
}

/// The error says what to do.
fn try_out(wanted: Wanted) -> io::Result<Found> {
    let no_kernel = match wanted {
        Wanted::Userspace => None,
        Wanted::Auto | Wanted::Kernel => match Kernel::probe() {
            Ok(()) => return Ok(Found::Kernel),
            Err(why) => Some(why),
        },
    };
    match (wanted, Userspace::probe(), no_kernel) {
        (Wanted::Kernel, _, Some(why)) => Err(io::Error::other(format!(
            "the kernel has no WireGuard ({why}), and this agent is configured to use no other: load the kernel \
             module wireguard, or set `wireguard` to auto or userspace in the agent's configuration"
        ))),
        (_, Ok(()), no_kernel) => Ok(Found::Userspace(no_kernel)),
        (_, Err(no_tun), Some(no_kernel)) => Err(io::Error::other(format!(
            "the kernel has no WireGuard ({no_kernel}), and a device of our own needs /dev/net/tun ({no_tun}): \
             load the kernel module wireguard or tun"
        ))),
        (_, Err(no_tun), None) => Err(io::Error::other(format!(
            "a device of our own needs /dev/net/tun ({no_tun}): load the kernel module tun, or set `wireguard` to \
             auto or kernel in the agent's configuration"
        ))),
    }
}

/// One kind, where devices of the other may be left from another configuration or another kernel: both would have the
/// same name and the same port.
struct Moved<To, From> {
    to: Box<To>,
    from: Box<From>,
}

impl<To: Engine, From: Engine> Engine for Moved<To, From> {
    fn word(&self) -> &'static str {
        self.to.word()
    }

    fn ensure(&self, place: &Place, mtu: u32) -> io::Result<bool> {
        self.from.remove(place)?;
        self.to.ensure(place, mtu)
    }

    fn get(&self, place: &Place) -> io::Result<Option<Live>> {
        self.to.get(place)
    }

    fn set(&self, place: &Place, change: &Change) -> io::Result<()> {
        self.to.set(place, change)
    }

    fn remove(&self, place: &Place) -> io::Result<()> {
        self.from.remove(place)?;
        self.to.remove(place)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    struct Noted(&'static str, Arc<Mutex<Vec<String>>>);

    impl Noted {
        fn note(&self, what: &str) {
            self.1.lock().unwrap().push(format!("{} {what}", self.0));
        }
    }

    impl Engine for Noted {
        fn word(&self) -> &'static str {
            self.0
        }

        fn ensure(&self, _place: &Place, _mtu: u32) -> io::Result<bool> {
            self.note("ensure");
            Ok(true)
        }

        fn get(&self, _place: &Place) -> io::Result<Option<Live>> {
            self.note("get");
            Ok(None)
        }

        fn set(&self, _place: &Place, _change: &Change) -> io::Result<()> {
            self.note("set");
            Ok(())
        }

        fn remove(&self, _place: &Place) -> io::Result<()> {
            self.note("remove");
            Ok(())
        }
    }

    #[test]
    fn a_device_of_the_other_kind_goes_first() {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let engine = |word| Box::new(Noted(word, notes.clone()));
        let moved = Moved { to: engine("userspace"), from: engine("kernel") };
        let place = Place { id: "wgs_1".into(), name: "rzwg0".into(), namespace: None };
        assert_eq!(moved.word(), "userspace");
        moved.ensure(&place, 1420).unwrap();
        moved.set(&place, &Change::default()).unwrap();
        moved.get(&place).unwrap();
        moved.remove(&place).unwrap();
        let wanted = [
            "kernel remove",
            "userspace ensure",
            "userspace set",
            "userspace get",
            "kernel remove",
            "userspace remove",
        ];
        assert_eq!(*notes.lock().unwrap(), wanted);
    }
}
