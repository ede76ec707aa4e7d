//! Rights: the agent keeps the few it needs, and what it starts gets fewer.
//!
//! What needs which right:
//! - `CAP_NET_ADMIN`: interfaces, taps, nftables, forwarding in a namespace; dnsmasq: answers to clients without an
//!   address;
//! - `CAP_SYS_ADMIN`: making, naming (a mount) and entering network namespaces;
//! - `CAP_NET_BIND_SERVICE`: only handed on to dnsmasq (ports 53 and 67).
//!
//! QEMU and qemu-img get none.

use crate::host::netns;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Gid, Group, User, chown, setgroups, setresgid, setresuid};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// A capability, by its number in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Right {
    /// `CAP_SETGID`
    SetGid = 6,
    /// `CAP_NET_BIND_SERVICE`
    NetBindService = 10,
    /// `CAP_NET_ADMIN`
    NetAdmin = 12,
    /// `CAP_SYS_ADMIN`
    SysAdmin = 21,
}

impl Right {
    /// Its name in systemd units and `capsh`.
    pub fn name(self) -> &'static str {
        match self {
            Right::SetGid => "CAP_SETGID",
            Right::NetBindService => "CAP_NET_BIND_SERVICE",
            Right::NetAdmin => "CAP_NET_ADMIN",
            Right::SysAdmin => "CAP_SYS_ADMIN",
        }
    }
}

/// What the agent keeps.
pub const KEPT: &[Right] = &[Right::NetAdmin, Right::SysAdmin, Right::NetBindService];

/// As whom the agent goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// As this user, with [`KEPT`] and nothing else.
    User(String),
    /// As root, for this reason. To be said loudly.
    Root(String),
    /// As whoever started it, who is not root and lacks these rights.
    Lacking(Vec<Right>),
}

impl Standing {
    /// True if the operator should do something about it.
    pub fn is_warning(&self) -> bool {
        match self {
            Standing::User(_) => false,
            Standing::Root(_) => true,
            Standing::Lacking(missing) => !missing.is_empty(),
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Standing::User(name) => write!(out, "runs as user {name} with named capabilities"),
            Standing::Root(why) => {
                write!(out, "runs as ROOT: {why}; `rhyzome-agent setup` makes the user that it should run as")
            }
            Standing::Lacking(missing) if missing.is_empty() => {
                write!(out, "runs as the user who started it, with named capabilities")
            }
            Standing::Lacking(missing) => {
                let names: Vec<&str> = missing.iter().map(|right| right.name()).collect();
                write!(out, "lacks {}: start it as root, it drops what it does not need", names.join(", "))
            }
        }
    }
}

/// Goes on as `user` if started as root and there is such a user. `own` are the agent's folders, made its own.
///
/// Only before any thread was started: rights belong to threads.
pub fn become_user(user: &str, own: &[&Path]) -> io::Result<Standing> {
    if !nix::unistd::geteuid().is_root() {
        let permitted = capabilities()?.permitted;
        let missing = KEPT.iter().copied().filter(|right| permitted & bit(*right) == 0).collect();
        return Ok(Standing::Lacking(missing));
    }
    let Some(account) = User::from_name(user)? else {
        return Ok(Standing::Root(format!("there is no user {user}")));
    };
    if account.uid.is_root() {
        return Ok(Standing::Root(format!("user {user} is root")));
    }
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("rights must be dropped before the first thread is started"));
    }
    if missing_from(capabilities()?.permitted, KEPT) {
        // A container's root, for example. Less would be nothing at all.
        return Ok(Standing::Root("this machine's root has not all rights that could be kept".into()));
    }
    prepare_namespaces(account.gid)?;
    for folder in own {
        give(folder, &account)?;
    }
    let mut groups = vec![account.gid];
    // /dev/kvm is the group's on both Debian and Alpine.
    groups.extend(Group::from_name("kvm")?.map(|group| group.gid));
    for device in ["/dev/net/tun", "/dev/kvm"] {
        lend(Path::new(device), &groups)?;
    }

    drop_bounding(mask(KEPT))?;
    prctl(libc::PR_SET_KEEPCAPS, 1)?;
    setgroups(&groups)?;
    setresgid(account.gid, account.gid, account.gid)?;
    setresuid(account.uid, account.uid, account.uid)?;
    set_exactly(mask(KEPT))?;
    Ok(Standing::User(user.to_owned()))
}

/// Lets the group make namespaces in /run/netns, each member its own.
fn prepare_namespaces(group: Gid) -> io::Result<()> {
    netns::prepare_folder()?;
    chown(Path::new(netns::FOLDER), None, Some(group))?;
    fs::set_permissions(netns::FOLDER, fs::Permissions::from_mode(0o1775))
}

/// Lets the first of `groups` use a device, where nothing (udev, mdev) has let one of them already.
fn lend(device: &Path, groups: &[Gid]) -> io::Result<()> {
    let Ok(found) = fs::metadata(device) else { return Ok(()) };
    let (mode, group) = (found.mode(), Gid::from_raw(found.gid()));
    if mode & 0o006 == 0o006 || (mode & 0o060 == 0o060 && groups.contains(&group)) {
        return Ok(());
    }
    chown(device, None, groups.first().copied())?;
    fs::set_permissions(device, fs::Permissions::from_mode(mode & 0o7777 | 0o060))
}

/// Makes a folder and all in it the user's, unless it is already: then nothing in it is looked at.
fn give(folder: &Path, account: &User) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    if fs::metadata(folder)?.uid() == account.uid.as_raw() {
        return Ok(());
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    // The folder itself last: what is interrupted here is done again by the next start.
    give_content(folder, account)?;
    std::os::unix::fs::lchown(folder, Some(account.uid.as_raw()), Some(account.gid.as_raw()))
}

fn give_content(folder: &Path, account: &User) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give_content(&entry.path(), account)?;
        }
        std::os::unix::fs::lchown(entry.path(), Some(account.uid.as_raw()), Some(account.gid.as_raw()))?;
    }
    Ok(())
}

/// What `command` starts gets these rights and can never get more.
#[allow(unsafe_code)]
pub fn limit_in_child(command: &mut Command, rights: &[Right]) {
    let keep = mask(rights);
    // SAFETY: between fork and exec only system calls on plain numbers happen: no allocation, no lock.
    unsafe {
        command.pre_exec(move || limit(keep));
    }
}

/// For `pre_exec` of what needs no right at all (QEMU): takes all away, for good. Makes system calls only, so it may run
/// between fork and exec.
pub fn drop_all_in_child() -> io::Result<()> {
    limit(0)
}

fn limit(keep: u64) -> io::Result<()> {
    drop_bounding(keep)?;
    set_exactly(keep)
}

/// Takes from this thread, and from what it starts, the possibility of ever having other rights. Not everyone may; then
/// `no_new_privs` in [`set_exactly`] does it alone.
fn drop_bounding(keep: u64) -> io::Result<()> {
    for number in 0..64u32 {
        if keep & (1 << number) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
            other => other?,
        }
    }
    Ok(())
}

/// Sets this thread's rights to those of `keep` that it has, hands exactly these on to what it starts, and forbids to
/// gain any.
fn set_exactly(keep: u64) -> io::Result<()> {
    prctl_ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    let kept = capabilities()?.permitted & keep;
    set_capabilities(kept)?;
    for number in (0..64u32).filter(|number| kept & (1 << number) != 0) {
        prctl_ambient(libc::PR_CAP_AMBIENT_RAISE, libc::c_ulong::from(number))?;
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn bit(right: Right) -> u64 {
    1 << (right as u32)
}

fn mask(rights: &[Right]) -> u64 {
    rights.iter().fold(0, |mask, right| mask | bit(*right))
}

fn missing_from(permitted: u64, rights: &[Right]) -> bool {
    permitted & mask(rights) != mask(rights)
}

/// The sets of this thread, as the kernel has them.
#[derive(Debug, Clone, Copy)]
struct Capabilities {
    permitted: u64,
}

/// `_LINUX_CAPABILITY_VERSION_3`: sets are two words each.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[allow(unsafe_code)]
fn capabilities() -> io::Result<Capabilities> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut words = [Words::default(); 2];
    // SAFETY: both are the structures that version 3 of this call reads and writes.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) };
    Errno::result(got)?;
    Ok(Capabilities { permitted: u64::from(words[0].permitted) | u64::from(words[1].permitted) << 32 })
}

#[allow(unsafe_code)]
fn set_capabilities(kept: u64) -> io::Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    let half = |half: u64| {
        let word = u32::try_from(half & 0xffff_ffff).unwrap_or_default();
        Words { effective: word, permitted: word, inheritable: word }
    };
    let words = [half(kept), half(kept >> 32)];
    // SAFETY: both are the structures that version 3 of this call reads.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) };
    Errno::result(set)?;
    Ok(())
}

#[allow(unsafe_code)]
fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used here take plain numbers only.
    Errno::result(unsafe { libc::prctl(option, value, zero, zero, zero) })?;
    Ok(())
}

#[allow(unsafe_code)]
fn prctl_ambient(what: libc::c_int, number: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    let what = libc::c_ulong::try_from(what).unwrap_or_default();
    // SAFETY: takes plain numbers only.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, what, number, zero, zero) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights_of_child(rights: &[Right]) -> (String, String) {
        let mut command = Command::new("cat");
        command.arg("/proc/self/status");
        limit_in_child(&mut command, rights);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("CapEff:"), field("CapPrm:"));
        (field("CapEff:"), field("CapBnd:"))
    }

    #[test]
    fn a_child_has_what_it_was_given_and_cannot_get_more() {
        let (effective, bounding) = rights_of_child(&[Right::NetAdmin, Right::NetBindService]);
        assert_eq!((effective.as_str(), bounding.as_str()), ("0000000000001400", "0000000000001400"));
    }

    #[test]
    fn a_child_without_rights_has_none() {
        let (effective, bounding) = rights_of_child(&[]);
        assert_eq!((effective.as_str(), bounding.as_str()), ("0000000000000000", "0000000000000000"));
    }

    #[test]
    fn an_unknown_user_means_root_said_loudly() {
        let standing = become_user("no-such-user-here", &[]).unwrap();
        assert!(standing.is_warning(), "{standing}");
        assert!(standing.to_string().contains("no-such-user-here"), "{standing}");
    }
}
