//! `rhyzome ssh`: this machine's ssh, with a key, a certificate and a list of known hosts that are made for this one login
//! and are gone after it. The way to the instance is one of the API's own streams: ssh reaches it by a socket that only
//! this user can open.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::ArgMatches;
use rhyzome_client::{Client, Console, Kind};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use super::{Context, switch, text, texts};
use crate::command::JOIN;

/// As much as is read at once.
const PIECE: usize = 16 << 10;

/// Logs in; ends this process with the status of ssh.
pub async fn run(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").unwrap_or_default();
    let path = format!("{}/{name}", context.path(kind));
    let (private, public) = new_key()?;
    let body = Some(("application/json", json!({ "public_key": public })));
    let made = context.client.call("POST", &format!("{path}/ssh-certificate"), body, None).await;
    let made = made.map_err(|error| context.missing(kind, &name, error))?.body;
    let folder = Folder::new()?;
    let login = Login { folder: &folder.0, name: &name, made: &made };
    login.write(&private)?;
    let port = leaf.get_one::<u16>("port").copied().unwrap_or(22);
    let socket = folder.0.join("way");
    let way = match text(leaf, "address") {
        Some(_) => None,
        None => Some(UnixListener::bind(&socket).context("no socket can be made for ssh")?),
    };
    let mut ssh = Command::new("ssh");
    ssh.args(login.options(way.is_some())?).args(["-p", &port.to_string()]);
    for option in texts(leaf, "option") {
        ssh.args(["-o", &option]);
    }
    if let Some(user) = text(leaf, "login") {
        ssh.args(["-l", &user]);
    }
    if switch(leaf, "verbose") {
        ssh.arg("-v");
    }
    ssh.arg("--").arg(text(leaf, "address").unwrap_or_else(|| name.clone())).args(texts(leaf, "command"));
    let child = ssh.kill_on_drop(true).spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            anyhow!("there is no `ssh` on this machine: install OpenSSH's client (Debian: openssh-client)")
        }
        _ => anyhow!("ssh cannot be run: {error}"),
    })?;
    let way = way.map(|listener| (listener, format!("{path}/tunnel?port={port}")));
    let status = attend(child, &context.client, way).await?;
    // Before this process is gone.
    drop(folder);
    std::process::exit(code(status))
}

/// As a shell tells it.
fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A new key: private, as OpenSSH writes it, and public.
fn new_key() -> anyhow::Result<(Zeroizing<String>, String)> {
    let mut seed = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(seed.as_mut()).map_err(|_| anyhow!("the system gives no random numbers"))?;
    let made = || {
        let key = PrivateKey::new(KeypairData::from(Ed25519Keypair::from_seed(&seed)), "rhyzome")?;
        Ok((key.to_openssh(LineEnding::LF)?, key.public_key().to_openssh()?))
    };
    made().map_err(|error: ssh_key::Error| anyhow!("no key can be made: {error}"))
}

// === files ===

/// A folder that only this user can look into; gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Folder> {
        let mut random = [0; 8];
        SystemRandom::new().fill(&mut random).map_err(|_| anyhow!("the system gives no random numbers"))?;
        // The path of a socket is short: not below a deep TMPDIR.
        let path = Path::new("/tmp").join(format!("rhyzome-ssh-{:016x}", u64::from_le_bytes(random)));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The key is good for minutes; whoever cannot remove it cannot do more about it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One login, as ssh is told of it.
struct Login<'a> {
    folder: &'a Path,
    name: &'a str,
    /// What the server has answered.
    made: &'a Value,
}

impl Login<'_> {
    fn said(&self, field: &str) -> anyhow::Result<&str> {
        let text = self.made[field].as_str().filter(|text| !text.contains(['\n', '\r']));
        text.with_context(|| format!("the server's answer has no `{field}`"))
    }

    fn write(&self, private: &str) -> anyhow::Result<()> {
        let files = [
            ("key", private),
            ("key-cert.pub", self.said("certificate")?),
            ("known_hosts", self.said("known_hosts")?),
        ];
        for (file, text) in files {
            let path = self.folder.join(file);
            let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let written = opened.and_then(|mut file| writeln!(file, "{}", text.trim_end()));
            written.with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(())
    }

    /// Nothing is asked, nothing is believed but the certificate, and nothing is written down.
    fn options(&self, by_socket: bool) -> anyhow::Result<Vec<String>> {
        let file = |name: &str| quoted(&self.folder.join(name).display().to_string());
        let mut options = vec![
            format!("IdentityFile={}", file("key")),
            format!("CertificateFile={}", file("key-cert.pub")),
            "IdentitiesOnly=yes".into(),
            "IdentityAgent=none".into(),
            "PreferredAuthentications=publickey".into(),
            format!("UserKnownHostsFile={}", file("known_hosts")),
            "GlobalKnownHostsFile=none".into(),
            format!("HostKeyAlias={}", self.said("host_key_alias")?),
            "HostKeyAlgorithms=ssh-ed25519-cert-v01@openssh.com".into(),
            "StrictHostKeyChecking=yes".into(),
            "CheckHostIP=no".into(),
            "UpdateHostKeys=no".into(),
            "ControlPath=none".into(),
        ];
        if by_socket {
            let own = std::env::current_exe().context("this program's own file is not known")?;
            let (own, way) = (own.display().to_string(), self.folder.join("way").display().to_string());
            let words = [own.as_str(), JOIN, &way].map(|word| quoted_for_shell(word).replace('%', "%%"));
            options.push(format!("ProxyCommand={}", words.join(" ")));
        }
        if self.name.starts_with('-') {
            bail!("`{}` is no name", self.name);
        }
        Ok(options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect())
    }
}

/// As ssh reads a file's name: it takes `%` and spaces for something else.
fn quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('%', "%%"))
}

fn quoted_for_shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

// === the way there ===

/// Until ssh has ended. What ends a terminal's command ends ssh, and then us.
async fn attend(
    mut child: Child,
    client: &Client,
    way: Option<(UnixListener, String)>,
) -> anyhow::Result<ExitStatus> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let (mut ended, mut hung_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let accept = async {
        match &way {
            Some((listener, path)) => listener.accept().await.map(|(stream, _)| (stream, path.clone())),
            None => std::future::pending().await,
        }
    };
    tokio::pin!(accept);
    let mut asked = false;
    loop {
        tokio::select! {
            status = child.wait() => return status.context("ssh cannot be waited for"),
            accepted = &mut accept, if !asked => {
                asked = true;
                let ((stream, path), client) = (accepted.context("ssh does not come to its socket")?, client.clone());
                tokio::spawn(async move {
                    if let Err(error) = lead(&client, &path, stream).await {
                        eprintln!("rhyzome: {error:#}");
                    }
                });
            }
            // The terminal has told ssh too.
            _ = interrupted.recv() => {}
            _ = ended.recv() => child.start_kill().context("ssh cannot be ended")?,
            _ = hung_up.recv() => child.start_kill().context("ssh cannot be ended")?,
        }
    }
}

async fn lead(client: &Client, path: &str, stream: UnixStream) -> anyhow::Result<()> {
    let console = client.console(path).await?;
    let (reading, writing) = stream.into_split();
    carry(console, reading, writing).await
}

/// Both ways, until one end is done.
async fn carry(
    mut console: Console,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> anyhow::Result<()> {
    let mut piece = vec![0; PIECE];
    let ended = loop {
        tokio::select! {
            read = console.read() => match read {
                Ok(Some(bytes)) => {
                    if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            },
            length = from.read(&mut piece) => match length {
                Ok(length @ 1..) => {
                    if let Err(error) = console.write(Bytes::copy_from_slice(&piece[..length])).await {
                        break Err(error.into());
                    }
                }
                // Whoever has said all has heard all: SSH ends both ways at once.
                Ok(0) | Err(_) => break Ok(()),
            },
        }
    };
    console.close().await;
    ended
}

/// `rhyzome instance tunnel`.
pub async fn tunnel(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").unwrap_or_default();
    let port = leaf.get_one::<u16>("port").copied().unwrap_or(22);
    let path = format!("{}/{name}/tunnel?port={port}", context.path(kind));
    let opened = context.client.console(&path).await;
    let console = opened.map_err(|error| context.missing(kind, &name, error))?;
    let (input, output) = own_ends()?;
    carry(console, input, output).await?;
    // A read of standard input that nobody waits for any more would keep this process.
    std::process::exit(0)
}

/// Standard input and output, without the lines and buffers of the usual ones.
fn own_ends() -> anyhow::Result<(File, File)> {
    let input = std::io::stdin().as_fd().try_clone_to_owned().context("there is no standard input")?;
    let output = std::io::stdout().as_fd().try_clone_to_owned().context("there is no standard output")?;
    Ok((File::from_std(input.into()), File::from_std(output.into())))
}

/// What ssh runs: its own standard input and output are the socket.
pub async fn join(leaf: &ArgMatches) -> anyhow::Result<()> {
    let path = text(leaf, "socket").unwrap_or_default();
    let stream = UnixStream::connect(&path).await.with_context(|| format!("{path} does not answer"))?;
    let (mut from_way, mut to_way) = stream.into_split();
    let (mut input, mut output) = own_ends()?;
    // Whichever ends first ends all of it, and ssh says what that means.
    let _ = tokio::select! {
        said = tokio::io::copy(&mut input, &mut to_way) => said,
        heard = tokio::io::copy(&mut from_way, &mut output) => heard,
    };
    let _ = output.flush().await;
    std::process::exit(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_gone_afterwards() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = Folder::new().unwrap();
        let made = json!({ "certificate": "ssh-ed25519-cert-v01@openssh.com AAAA", "known_hosts": "@cert-authority inst_1 k",
            "host_key_alias": "inst_1" });
        let login = Login { folder: &folder.0, name: "web", made: &made };
        let (private, public) = new_key().unwrap();
        login.write(&private).unwrap();
        assert!(public.starts_with("ssh-ed25519 AAAA"), "{public}");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder.0), mode(&folder.0.join("key"))), (0o700, 0o600));
        let options = login.options(true).unwrap().join(" ");
        for wanted in
            ["HostKeyAlias=inst_1", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "ProxyCommand='"]
        {
            assert!(options.contains(wanted), "{wanted}: {options}");
        }
        assert!(!login.options(false).unwrap().join(" ").contains("ProxyCommand"));
        let path = folder.0.clone();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn an_answer_puts_nothing_into_files_of_its_own() {
        let made =
            json!({ "certificate": "a", "known_hosts": "a\n* ssh-ed25519 evil", "host_key_alias": "inst_1" });
        let folder = Folder::new().unwrap();
        let login = Login { folder: &folder.0, name: "web", made: &made };
        assert!(login.write("key").unwrap_err().to_string().contains("known_hosts"));
    }

    #[test]
    fn words_are_taken_as_they_are() {
        assert_eq!(quoted_for_shell("a b'c"), "'a b'\\''c'");
        assert_eq!(quoted("/tmp/100%"), "\"/tmp/100%%\"");
    }
}
