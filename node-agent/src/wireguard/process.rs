//! A userspace device in a process of its own, that knows nothing of the agent: kill or upgrade the agent, and no packet
//! is lost. It is found again by its socket: who answers there is the device.

use super::engine::{Engine, Place, inside};
use super::plan::{Change, Live};
use super::uapi;
use crate::host::netns;
use crate::host::process::ProcessId;
use crate::{files, names, privileges};
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The descriptor that the device's process finds its interface at.
pub const TUN_FD: i32 = 3;

/// A device answers at once, or it is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ports below 1024 may be ordered. All else it does without a right.
const RIGHTS: &[privileges::Right] = &[privileges::Right::NetBindService];

/// Devices in processes.
#[derive(Debug, Clone)]
pub struct Userspace {
    state: PathBuf,
    program: PathBuf,
}

impl Userspace {
    /// Of the agent with this folder; its own program is the device, too.
    pub fn new(state: &Path) -> Self {
        // Its file may have been replaced by an upgrade: what runs is there by this name all the same.
        let own = std::env::current_exe().ok().filter(|program| program.exists());
        Self::by(state, own.unwrap_or_else(|| "/proc/self/exe".into()))
    }

    /// The same, by another program that knows `wireguard-device`.
    pub fn by(state: &Path, program: PathBuf) -> Self {
        Self { state: state.to_owned(), program }
    }

    /// Makes an interface in a namespace that nobody ever sees.
    pub fn probe() -> io::Result<()> {
        netns::on_own_thread(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            netns::open_tun("probe").map(drop)
        })
    }

    fn socket(&self, place: &Place) -> PathBuf {
        names::wireguard_socket(&self.state, &place.id)
    }

    /// The device's process, and a way to speak to it.
    fn find(&self, place: &Place) -> io::Result<Option<(ProcessId, UnixStream)>> {
        let stream = match UnixStream::connect(self.socket(place)) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let pid = getsockopt(&stream, sockopt::PeerCredentials)?.pid();
        let process = u32::try_from(pid).ok().and_then(ProcessId::of);
        Ok(process.map(|process| (process, stream)))
    }

    fn start(&self, place: &Place, mtu: u32) -> io::Result<()> {
        let socket = self.socket(place);
        fs::create_dir_all(names::run_root(&self.state))?;
        let folder = names::wireguard_folder(&self.state, &place.id);
        fs::create_dir_all(&folder)?;
        files::remove_if_there(&socket)?;
        let tun = inside(place.namespace.as_deref(), || netns::open_tun(&place.name))?;
        let log = log(&folder.join("device.log"))?;
        let mut command = Command::new(&self.program);
        command
            .arg("wireguard-device")
            .args(["--interface", &place.name, "--mtu", &mtu.to_string()])
            .arg("--socket")
            .arg(&socket)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        hand_over(&mut command, &tun);
        privileges::limit_in_child(&mut command, RIGHTS);
        // On the node, whoever asks: that is where its UDP socket belongs.
        let mut child = command.spawn()?;
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&socket).is_err() {
            if let Some(status) = child.try_wait()? {
                let said = fs::read_to_string(folder.join("device.log")).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it did not say why");
                return Err(io::Error::other(format!("the device's process ended ({status}): {last}")));
            }
            if Instant::now() >= deadline {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other("the device's process does not answer"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Someone has to take note of its end.
        std::thread::Builder::new().name("wireguard".into()).spawn(move || child.wait())?;
        Ok(())
    }

    fn ask(&self, place: &Place, text: &str) -> io::Result<Option<Live>> {
        let Some((_, mut stream)) = self.find(place)? else { return Ok(None) };
        stream.write_all(text.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        uapi::read(&answer).map(Some).map_err(io::Error::other)
    }
}

impl Engine for Userspace {
    fn word(&self) -> &'static str {
        "userspace"
    }

    fn ensure(&self, place: &Place, mtu: u32) -> io::Result<bool> {
        let has_link = is_there(place)?;
        if let Some((process, _)) = self.find(place)? {
            if has_link {
                return Ok(false);
            }
            // Its interface went with the namespace that it was in.
            process.end(PATIENCE)?;
        }
        self.start(place, mtu)?;
        Ok(true)
    }

    fn get(&self, place: &Place) -> io::Result<Option<Live>> {
        if is_there(place)? { self.ask(place, uapi::GET) } else { Ok(None) }
    }

    fn set(&self, place: &Place, change: &Change) -> io::Result<()> {
        match self.ask(place, &uapi::set(change)) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(io::Error::other("the device's process is gone")),
            Err(error) => {
                // One that could not listen says that it has the port it was told: another one is honest.
                if (change.port.is_some() || change.private_key.is_some())
                    && let Some((process, _)) = self.find(place)?
                {
                    process.end(PATIENCE)?;
                }
                Err(error)
            }
        }
    }

    fn remove(&self, place: &Place) -> io::Result<()> {
        if let Some((process, _)) = self.find(place)? {
            process.end(PATIENCE)?;
        }
        files::remove_if_there(&self.socket(place)).map(drop)
    }
}

fn is_there(place: &Place) -> io::Result<bool> {
    if let Some(namespace) = &place.namespace
        && !netns::exists(namespace)?
    {
        return Ok(false);
    }
    inside(place.namespace.as_deref(), || Ok(nix::net::if_::if_nametoindex(place.name.as_str()).is_ok()))
}

/// Only what was said since the last start.
fn log(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The child has the interface at [`TUN_FD`], in a session of its own.
#[allow(unsafe_code)]
fn hand_over(command: &mut Command, tun: &OwnedFd) {
    let from = tun.as_raw_fd();
    // SAFETY: between fork and exec only system calls on plain numbers happen: no allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            // A descriptor onto itself would keep its close-on-exec flag.
            let made =
                if from == TUN_FD { libc::fcntl(from, libc::F_SETFD, 0) } else { libc::dup2(from, TUN_FD) };
            if made < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}
