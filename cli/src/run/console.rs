//! `rhyzome instance console`, `rhyzome instance log`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::ArgMatches;
use nix::sys::termios::{self, SetArg, Termios};
use rhyzome_client::{Console, Kind};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Context, Usage, switch, text};

/// Ctrl-]
const LEAVE: u8 = 0x1d;
/// With `--show`: when so long nothing has come, that was all.
const QUIET: Duration = Duration::from_secs(2);
/// With `--show`: a guest that never stops talking is not listened to for longer.
const LONGEST_SHOW: Duration = Duration::from_secs(30);

/// Connects this terminal to the guest.
pub async fn run(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").ok_or_else(|| Usage("say its name".into()))?;
    let path = format!("{}/{name}/console", context.path(kind));
    let opened = context.client.console(&path).await;
    let mut console = opened.map_err(|e| context.missing(kind, &name, e))?;
    if switch(leaf, "show") {
        // The guest may talk on: then time is up, which is no error.
        let shown = timeout(LONGEST_SHOW, show(&mut console)).await;
        console.close().await;
        return shown.unwrap_or(Ok(()));
    }
    let raw = Raw::enter()?;
    if raw.is_some() {
        eprint!("console of {name}; Ctrl-] leaves\r\n");
    }
    let ended = carry(&mut console, typed()).await;
    drop(raw);
    console.close().await;
    say!("");
    ended
}

/// Prints what the guest has printed, and with `--follow` what it prints.
pub async fn log(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").ok_or_else(|| Usage("say its name".into()))?;
    let tail = leaf.get_one::<u64>("tail").map(|lines| ("tail".to_owned(), lines.to_string()));
    let follow = ("follow".to_owned(), switch(leaf, "follow").to_string());
    let query: Vec<_> = tail.into_iter().chain([follow]).collect();
    let path = format!("{}/{name}/log", context.path(kind));
    let opened = context.client.bytes(&path, &query).await;
    let mut log = opened.map_err(|e| context.missing(kind, &name, e))?;
    let mut out = std::io::stdout();
    while let Some(bytes) = log.next().await.context("the log broke off: this was not all")? {
        if let Err(error) = out.write_all(&bytes).and_then(|()| out.flush()) {
            crate::output::leave(&error);
        }
    }
    Ok(())
}

async fn show(console: &mut Console) -> anyhow::Result<()> {
    while let Ok(read) = timeout(QUIET, console.read()).await {
        match read? {
            Some(bytes) => print(&bytes)?,
            None => break,
        }
    }
    Ok(())
}

/// Both ways, until one end is done.
async fn carry(console: &mut Console, mut typed: mpsc::Receiver<Bytes>) -> anyhow::Result<()> {
    let mut input = true;
    loop {
        tokio::select! {
            read = console.read() => match read? {
                Some(bytes) => print(&bytes)?,
                None => return Ok(()),
            },
            bytes = typed.recv(), if input => match bytes {
                Some(bytes) => {
                    let (before, leave) = until_leave(&bytes);
                    if !before.is_empty() {
                        console.write(Bytes::copy_from_slice(before)).await?;
                    }
                    if leave {
                        return Ok(());
                    }
                }
                // Standard input has ended (a pipe): the guest may still have something to say.
                None => input = false,
            },
        }
    }
}

fn until_leave(bytes: &[u8]) -> (&[u8], bool) {
    match bytes.iter().position(|byte| *byte == LEAVE) {
        Some(at) => (&bytes[..at], true),
        None => (bytes, false),
    }
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    if let Err(error) = &written
        && error.kind() == std::io::ErrorKind::BrokenPipe
        && !std::io::stdin().is_terminal()
    {
        crate::output::leave(error);
    }
    written.context("the terminal cannot be written to")
}

/// What is typed. Reading a terminal blocks, so it has a thread, which ends with the process.
fn typed() -> mpsc::Receiver<Bytes> {
    let (send, receive) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut bytes = [0; 1024];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut bytes) {
            if send.blocking_send(Bytes::copy_from_slice(&bytes[..length])).is_err() {
                return;
            }
        }
    });
    receive
}

/// The terminal, every key passed on as it is; back as it was when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Option<Raw>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(std::io::stdin()).context("the terminal cannot be asked")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).context("the terminal cannot be set")?;
        Ok(Some(Raw(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing is left to be done about a terminal that cannot be set back.
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_that_leaves() {
        assert_eq!(until_leave(b"ab"), (&b"ab"[..], false));
        assert_eq!(until_leave(b"ab\x1dc"), (&b"ab"[..], true));
    }
}
