//! QEMU alone, with the very same command line that the agent has used: the peer of a create.
//!
//! Only what cannot be the same differs: the overlay is a fresh one on the same image, sockets and console log are
//! other files, and the inherited taps have other numbers.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns};

use crate::run;

/// What bare QEMU is to run as.
pub struct Peer {
    words: Vec<String>,
    folder: PathBuf,
    /// Kept open as long as QEMU may want them.
    _taps: Vec<OwnedFd>,
}

/// A QEMU of ours; ended when dropped.
pub struct Running {
    child: Child,
    /// Right before it was started.
    pub since: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// Takes the command line of an instance, whose folder is `from` and whose guest must not run now. `taps` are
    /// its taps, in order, in `namespace`.
    pub fn of(from: &Path, folder: PathBuf, namespace: &str, taps: &[String]) -> Result<Peer> {
        let words = split(&fs::read_to_string(from.join("command"))?);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        fs::copy(from.join("seed.iso"), folder.join("seed.iso"))?;
        let disk = words.iter().find_map(|word| disk_of(word)).context("the instance has no root disk")?;
        overlay(&folder.join("root.qcow2"), disk)?;
        let taps = taps.iter().map(|tap| open_tap(namespace, tap)).collect::<Result<Vec<_>>>()?;
        let numbers: Vec<RawFd> = taps.iter().map(AsRawFd::as_raw_fd).collect();
        let words = rewrite(&words, &folder, &numbers);
        Ok(Peer { words, folder, _taps: taps })
    }

    /// Starts it.
    pub fn start(&self) -> Result<Running> {
        let log = File::create(self.folder.join("qemu.log"))?;
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).current_dir(&self.folder).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let since = Instant::now();
        let child = command.spawn().with_context(|| format!("{} cannot be started", self.words[0]))?;
        Ok(Running { child, since })
    }

    /// Where its console goes.
    pub fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The qcow2 file that a word names.
fn disk_of(word: &str) -> Option<&str> {
    let files = word.split(',').filter_map(|option| option.strip_prefix("file.filename="));
    files.into_iter().find(|file| file.ends_with(".qcow2"))
}

/// A fresh disk like this one: of the same size, on the same image.
fn overlay(file: &Path, like: &str) -> Result<()> {
    let info = run::output(Command::new("qemu-img").args(["info", "--output=json", like]))?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let image = info["backing-filename"].as_str().context("the root disk stands on no image")?;
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image]).arg(file);
    run::output(command.arg(info["virtual-size"].to_string())).map(drop)
}

/// The words of a command line as the agent writes it: quoted for a shell, with lines that go on.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut begun) = (String::new(), false, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' => (quoted, begun) = (!quoted, true),
            '\\' if !quoted => match letters.next() {
                Some('\n') | None => {}
                Some(escaped) => {
                    word.push(escaped);
                    begun = true;
                }
            },
            letter if letter.is_whitespace() && !quoted => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            letter => {
                word.push(letter);
                begun = true;
            }
        }
    }
    words
}

/// The same words, with other files and taps of other numbers.
fn rewrite(words: &[String], folder: &Path, taps: &[RawFd]) -> Vec<String> {
    let mut taps = taps.iter();
    let mut one = |option: &str| {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let name = value.rsplit('/').next().unwrap_or_default();
        match key {
            "fd" => taps.next().map_or_else(|| option.to_owned(), |tap| format!("fd={tap}")),
            "file.filename" if name.ends_with(".qcow2") => {
                format!("{key}={}", folder.join("root.qcow2").display())
            }
            "file.filename" | "path" | "logfile" => format!("{key}={}", folder.join(name).display()),
            _ => option.to_owned(),
        }
    };
    words.iter().map(|word| word.split(',').map(&mut one).collect::<Vec<_>>().join(",")).collect()
}

/// Opens a tap as the agent does, to be inherited.
fn open_tap(namespace: &str, tap: &str) -> Result<OwnedFd> {
    let file = Path::new("/run/netns").join(namespace);
    let file = File::open(&file).with_context(|| format!("{} cannot be entered", file.display()))?;
    // A namespace belongs to a thread: this one ends with the tap opened.
    let opened = std::thread::scope(|scope| {
        let opened = scope.spawn(|| -> Result<OwnedFd> {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            attach(tap)
        });
        opened.join().unwrap_or_else(|_| anyhow::bail!("the thread in {namespace} panicked"))
    })?;
    fcntl(&opened, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(opened)
}

#[allow(unsafe_code)]
fn attach(tap: &str) -> Result<OwnedFd> {
    use nix::libc;
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(tap.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).context("flags of a tap")?;
    // SAFETY: the descriptor is open, and the request outlives the call, which reads and writes a whole ifreq.
    let attached = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    nix::errno::Errno::result(attached).with_context(|| format!("tap {tap}"))?;
    Ok(OwnedFd::from(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_read_and_rewritten() {
        let text = "/usr/bin/qemu \\\n  -name 'a b' -x '' \\\n  -netdev tap,id=nic0,fd=14 \\\n  -blockdev \
                    driver=qcow2,file.filename=/s/disks/disk_1.qcow2 -chardev \
                    socket,id=c,path=/s/run/1/console.sock,logfile=/s/instances/1/console.log\n";
        let words = split(text);
        assert_eq!(words[..5], ["/usr/bin/qemu", "-name", "a b", "-x", ""]);
        let words = rewrite(&words, Path::new("/b"), &[7]);
        assert_eq!(words[6], "tap,id=nic0,fd=7");
        assert_eq!(words[8], "driver=qcow2,file.filename=/b/root.qcow2");
        assert_eq!(words[10], "socket,id=c,path=/b/console.sock,logfile=/b/console.log");
    }
}
