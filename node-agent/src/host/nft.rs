//! nftables: one atomic transaction through the `nft` program, and a cheap way to see that nothing changed since.
//!
//! The kernel counts the transactions of each namespace. If the count is still what it was right after ours, then
//! what we wrote is what is live, and no program needs to be started to know it.

use super::tools;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A socket to the packet filter of one namespace: the one of the thread that opened it.
pub struct Filter(OwnedFd);

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NFTA_GEN_ID: u16 = 1;
/// Not in the libc crate for all targets.
const SO_NETNS_COOKIE: nix::libc::c_int = 71;

impl Filter {
    /// Opens the filter of this thread's namespace.
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        Ok(Self(fd))
    }

    /// The kernel's own name for the namespace: another one is never called so until the machine restarts.
    #[allow(unsafe_code)]
    pub fn namespace(&self) -> io::Result<u64> {
        let mut cookie = 0u64;
        let mut length = nix::libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes, which is cookie's size.
        let got = unsafe {
            nix::libc::getsockopt(
                self.0.as_raw_fd(),
                nix::libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        Errno::result(got)?;
        Ok(cookie)
    }

    /// How many transactions this namespace has seen.
    pub fn generation(&self) -> io::Result<u32> {
        let mut request = Vec::with_capacity(20);
        request.extend_from_slice(&20u32.to_ne_bytes());
        request.extend_from_slice(&(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
        request.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        // Sequence and sender: one question at a time, so neither matters. Then nfgenmsg, all zero.
        request.extend_from_slice(&[0; 12]);
        sendto(self.0.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0u8; 512];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        parse_generation(&answer[..length]).ok_or_else(|| {
            io::Error::other("the kernel does not count nftables transactions: is nf_tables there?")
        })
    }
}

/// Finds the generation in a netlink answer: a header of 16 bytes, nfgenmsg of 4, then attributes.
fn parse_generation(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN) {
        return None;
    }
    let mut rest = answer.get(20..)?;
    while rest.len() >= 8 {
        let length = usize::from(u16::from_ne_bytes(rest[..2].try_into().ok()?));
        let kind = u16::from_ne_bytes(rest[2..4].try_into().ok()?);
        if kind & 0x3fff == NFTA_GEN_ID {
            return Some(u32::from_be_bytes(rest[4..8].try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4).max(4)..)?;
    }
    None
}

/// Runs one transaction in this thread's namespace: all of it happens, or nothing.
pub fn run(script: &str) -> io::Result<()> {
    call(&["-f", "-"], script).map(drop)
}

/// What a table holds now; none if there is no such table.
pub fn list(table: &str) -> io::Result<Option<String>> {
    let words: Vec<&str> = ["-s", "list", "table"].into_iter().chain(table.split(' ')).collect();
    match call(&words, "") {
        Err(error) if error.to_string().contains("No such file or directory") => Ok(None),
        other => other.map(Some),
    }
}

/// The same, but answers as soon as `filter` has counted one transaction more than `generation`.
///
/// nft itself ends only after a grace period of the kernel (some 8 ms) that concerns what was taken away, not what holds.
/// For a namespace that nobody else is known to write to: another's transaction would be taken for this one.
pub fn run_until_live(script: &str, filter: &Filter, generation: u32) -> io::Result<()> {
    let mut child = start(&["-f", "-"], script)?;
    while child.try_wait()?.is_none() {
        if filter.generation()? == generation.wrapping_add(1) {
            // Someone has to take note of its end.
            std::thread::Builder::new().name("nft".into()).spawn(move || child.wait())?;
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    finish(child).map(drop)
}

fn call(words: &[&str], input: &str) -> io::Result<String> {
    finish(start(words, input)?)
}

fn start(words: &[&str], input: &str) -> io::Result<Child> {
    let mut child = Command::new(tools::program("nft"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| tools::cannot_start("nft", &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A broken pipe means that nft has already given up; what it says then is the better error.
        let _ = stdin.write_all(input.as_bytes());
    }
    Ok(child)
}

fn finish(child: Child) -> io::Result<String> {
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
    Err(io::Error::other(format!("nft refused the rules: {first}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_is_found_among_other_attributes() {
        let mut answer = vec![0; 20];
        answer[4..6].copy_from_slice(&(10u16 << 8 | 15).to_ne_bytes());
        for (kind, value) in [(2u16, 77u32), (1, 4711)] {
            answer.extend_from_slice(&8u16.to_ne_bytes());
            answer.extend_from_slice(&kind.to_ne_bytes());
            answer.extend_from_slice(&value.to_be_bytes());
        }
        assert_eq!(parse_generation(&answer), Some(4711));
        assert_eq!(parse_generation(&answer[..20]), None);
        assert_eq!(parse_generation(&[]), None);
    }
}
