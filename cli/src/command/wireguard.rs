//! What only VPN networks and WireGuard peers have.

use clap::{Arg, Command};

use super::{name, option, switch};

/// `create`, with flags for keys that are made here.
pub fn with_keys(command: Command, kind: &str) -> Command {
    let server = if kind == "wireguard-peer" { " --server office" } else { "" };
    command
        .after_help(format!(
            "Examples:\n  rhyzome {kind} create laptop{server} --make-key laptop.key --wait\n  \
             rhyzome {kind} config laptop --key laptop.key --file laptop.conf\n  wg-quick up ./laptop.conf"
        ))
        .args([
            key("make-key", "Make the pair of keys: the private one into this new file, and nowhere else"),
            key(
                "make-preshared-key",
                "Make a key that both sides share besides, and keep it in this new file",
            ),
        ])
}

/// `config`.
pub fn config(kind: &str) -> Command {
    Command::new("config")
        .about("The file that wg-quick takes, or a QR code of it")
        .after_help(format!(
            "Examples:\n  rhyzome {kind} config laptop --key laptop.key --file laptop.conf\n  \
             rhyzome {kind} config phone --key phone.key --qr\n\n\
             The private key is put in here; the server has never seen it."
        ))
        .arg(name())
        .args([
            key("key", "The client's private key, to be put in"),
            key("preshared-key", "The key that both sides share besides, to be put in"),
            option("endpoint", "HOST:PORT", "What to dial, if not what the server says"),
            key("file", "Write it into this new file, that nobody else can read"),
            switch("qr", "As a QR code, for a phone").conflicts_with("file"),
        ])
}

fn key(name: &'static str, help: &'static str) -> Arg {
    option(name, "FILE", help)
}
