//! Network namespaces, as `ip netns` knows them: a bind mount in /run/netns keeps each alive.
//!
//! A network namespace belongs to a *thread*. So everything that happens in one happens on an OS thread of its
//! own that ends with it; no thread of the async runtime ever changes namespace.

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where `ip netns` looks.
pub const FOLDER: &str = "/run/netns";

/// The file system type of a namespace's file.
const NSFS: FsType = FsType(0x6e73_6673);

/// The file that names `namespace`.
pub fn path(namespace: &str) -> PathBuf {
    Path::new(FOLDER).join(namespace)
}

/// True if `namespace` exists; a leftover plain file (its mount was taken away) does not count.
pub fn exists(namespace: &str) -> io::Result<bool> {
    match statfs(&path(namespace)) {
        Ok(stat) => Ok(stat.filesystem_type() == NSFS),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The names of all namespaces that begin with `prefix`.
pub fn list(prefix: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with(prefix)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Makes the folder and lets mounts in it be seen by all of the machine, as `ip netns add` would.
///
/// Needs root where the folder is not there yet; done once before rights are dropped.
pub fn prepare_folder() -> io::Result<()> {
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;
    // EINVAL: the folder is no mount point yet, so it cannot be shared. Then it is mounted onto itself first.
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    match mount(None::<&str>, folder, None::<&str>, shared, None::<&str>) {
        Ok(()) => Ok(()),
        Err(Errno::EINVAL) => {
            mount(Some(folder), folder, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            Ok(mount(None::<&str>, folder, None::<&str>, shared, None::<&str>)?)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Makes `namespace`, with nothing in it.
pub fn create(namespace: &str) -> io::Result<()> {
    if !Path::new(FOLDER).is_dir() {
        prepare_folder()?;
    }
    let file = path(namespace);
    // A leftover of a namespace whose mount was taken away by hand is a plain file, and can be mounted on.
    OpenOptions::new().create(true).append(true).open(&file)?;
    let made = on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    });
    if made.is_err() {
        // The error that matters is the one above.
        let _ = fs::remove_file(&file);
    }
    made
}

/// Takes `namespace` away, and with it all that is in it once no process lives there. Fine if there is none.
pub fn delete(namespace: &str) -> io::Result<()> {
    let file = path(namespace);
    match umount2(&file, MntFlags::MNT_DETACH) {
        // EINVAL: not a mount point, only a leftover file.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs `work` inside `namespace`, on a thread of its own.
///
/// Processes started and sockets opened by `work` belong to the namespace for as long as they live.
pub fn run_in<T, F>(namespace: &str, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    let file = File::open(path(namespace))
        .map_err(|error| io::Error::new(error.kind(), format!("namespace {namespace}: {error}")))?;
    on_own_thread(move || {
        setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            let error = io::Error::from(errno);
            io::Error::new(error.kind(), format!("entering namespace {namespace}: {error}"))
        })?;
        work()
    })
}

/// Opens the persistent tap `tap` in `namespace`, as QEMU wants it: whole frames with a virtio header.
pub fn open_tap(namespace: &str, tap: &str) -> io::Result<OwnedFd> {
    run_in(namespace, || attach(tap, libc::IFF_TAP | libc::IFF_VNET_HDR, Being::Found))
}

/// Makes a tap that stays when its file is closed, in the namespace of this thread. It begins down.
pub fn create_tap(tap: &str) -> io::Result<()> {
    attach(tap, libc::IFF_TAP | libc::IFF_VNET_HDR, Being::Lasting).map(drop)
}

/// Makes an interface for IP packets in the namespace of this thread, that is gone when its file is closed. Each packet has
/// a virtio header before it.
pub fn open_tun(tun: &str) -> io::Result<OwnedFd> {
    attach(tun, libc::IFF_TUN | libc::IFF_VNET_HDR, Being::Made)
}

/// What becomes of an interface with its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Being {
    /// It is there, and stays.
    Found,
    /// It is made, and goes with its file.
    Made,
    /// It is made, and stays.
    Lasting,
}

#[allow(unsafe_code)]
fn attach(tap: &str, kind: libc::c_int, being: Being) -> io::Result<OwnedFd> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("interface {tap}: {error}"));
    if tap.is_empty() || tap.len() >= libc::IFNAMSIZ {
        return Err(named(io::Error::new(io::ErrorKind::InvalidInput, "not the name of an interface")));
    }
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(named)?;
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(tap.bytes()) {
        *to = from.cast_signed();
    }
    let flags = kind | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    if being == Being::Found && nix::net::if_::if_nametoindex(tap).is_err() {
        // Without this, opening a tap that is gone would quietly make a new one outside all rules.
        return Err(named(io::Error::from(io::ErrorKind::NotFound)));
    }
    // SAFETY: the descriptor is open, and the request outlives the call, which reads and writes a whole ifreq.
    let attached = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(attached).map_err(|errno| named(errno.into()))?;
    if being == Being::Lasting {
        // SAFETY: the descriptor is open; the argument is a plain number.
        let kept = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1) };
        Errno::result(kept).map_err(|errno| named(errno.into()))?;
    }
    Ok(OwnedFd::from(file))
}

/// Runs `work` on a thread that ends with it, and hands on what it answers.
pub fn on_own_thread<T, F>(work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread inside a namespace panicked")))
    })
}
