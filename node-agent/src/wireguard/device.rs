//! The process that is a userspace device: reads packets from an interface that it was handed, and speaks WireGuard on
//! UDP. It is told by a socket, as `wg` tells any such device, and can do nothing else: no file, no right, no dump.

use super::process::TUN_FD;
use super::transports::{Ends, TunRecv, TunSend, Udp};
use gotatun::device::uapi::{UapiClient, UapiServer};
use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Arguments of `rhyzome-agent wireguard-device`. The interface itself comes as descriptor 3.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// What it is called, for people who look at processes
    #[arg(long)]
    interface: String,
    /// The size of its packets: none is padded beyond it
    #[arg(long)]
    mtu: u16,
    /// Where it is told what to do
    #[arg(long)]
    socket: PathBuf,
}

/// What the kernel may leave to us: checksums, and cutting TCP of both families, also where congestion is told.
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04 | 0x08;
/// The threads that encrypt.
const THREADS: usize = 4;

/// Runs until the interface goes, or nothing can be heard any more: whoever started it starts another.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let tun = interface()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&arguments.socket)?;
    shut_in()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, THREADS))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (client, server) = UapiServer::new();
        std::thread::Builder::new().name("told".into()).spawn(move || listen(&listener, &client))?;
        let (ends, mut ended) = Ends::new();
        let fd = Arc::new(awaited(tun)?);
        let (send, read) =
            (TunSend::new(fd.clone(), ends.clone()), TunRecv::new(fd, arguments.mtu, ends.clone()));
        let device = gotatun::device::build().with_udp(Udp::new(ends)).with_ip_pair(send, read);
        // What it calls fatal itself may be a connection only that was taken down for another one, by another key.
        let _runs = device.with_uapi(server).build().await?;
        let why = ended.recv().await.unwrap_or_default();
        anyhow::bail!("the interface {} ends: {why}", arguments.interface)
    })
}

fn listen(listener: &UnixListener, client: &UapiClient) {
    for stream in listener.incoming().flatten() {
        client.clone().wrap_read_write(Whole(stream));
    }
}

/// What is formatted onto it goes out in one piece: it would be a system call for each word of thousands of peers.
struct Whole(UnixStream);

impl io::Read for &Whole {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(room)
    }
}

impl io::Write for &Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0).write(bytes)
    }

    fn write_fmt(&mut self, words: std::fmt::Arguments<'_>) -> io::Result<()> {
        (&self.0).write_all(words.to_string().as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        (&self.0).flush()
    }
}

/// The interface that was handed over.
#[allow(unsafe_code)]
fn interface() -> anyhow::Result<OwnedFd> {
    // SAFETY: asks about a number, and changes nothing if no descriptor has it.
    let flags = unsafe { libc::fcntl(TUN_FD, libc::F_GETFL) };
    anyhow::ensure!(flags >= 0, "descriptor {TUN_FD} is not open: the agent starts this by itself");
    // SAFETY: it is open, and whoever started this process has left it to us alone.
    let tun = unsafe { OwnedFd::from_raw_fd(TUN_FD) };
    // SAFETY: the descriptor is open, the argument a plain number.
    let set = unsafe { libc::fcntl(tun.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    anyhow::ensure!(set >= 0, "{}", io::Error::last_os_error());
    // SAFETY: likewise.
    let large = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, OFFLOADS) };
    if large < 0 {
        eprintln!("the interface hands over no large packets, and is slower: {}", io::Error::last_os_error());
    }
    Ok(tun)
}

/// Must be called where the runtime is.
#[allow(unsafe_code)]
fn awaited(tun: OwnedFd) -> io::Result<AsyncFd<File>> {
    // SAFETY: the number of an owned descriptor stays the same until it is dropped, and it is dropped with this.
    unsafe { AsyncFd::register(File::from(tun)) }.map_err(io::Error::from)
}

/// No file is opened from here on where the kernel has Landlock; the keys in memory are in no core dump, and no other
/// process of the same user reads them.
#[allow(unsafe_code)]
fn shut_in() -> anyhow::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // SAFETY: takes plain numbers only.
    let hidden = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    anyhow::ensure!(hidden == 0, "{}", io::Error::last_os_error());
    Ruleset::default().handle_access(AccessFs::from_all(ABI::V3))?.create()?.restrict_self()?;
    Ok(())
}
