//! What is asked of whoever sits before the terminal.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use zeroize::Zeroizing;

/// Shows again what is typed, however asking ended.
struct Quiet(Termios);

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Asks for somebody's password, which is not shown.
pub fn password(name: &str) -> anyhow::Result<Zeroizing<String>> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask for the password of {name}: say --password-file FILE");
    }
    let before = termios::tcgetattr(std::io::stdin()).context("the terminal cannot be asked")?;
    let mut quiet = before.clone();
    quiet.local_flags.remove(LocalFlags::ECHO);
    termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &quiet).context("the terminal cannot be set")?;
    let _quiet = Quiet(before);
    eprint!("password of {name}: ");
    std::io::stderr().flush()?;
    let mut line = Zeroizing::new(String::new());
    std::io::stdin().read_line(&mut line).context("the password cannot be read")?;
    eprintln!();
    match line.trim_end_matches(['\r', '\n']) {
        "" => bail!("no password was given"),
        password => Ok(Zeroizing::new(password.to_owned())),
    }
}
