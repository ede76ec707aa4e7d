//! One process of a world: started, killed, started again, with its log in a file.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{http, procfs};

/// How many lines of its log are shown when a test fails.
const LAST: usize = 60;

/// How it is started, and the process if it runs.
#[derive(Debug)]
pub struct Process {
    name: String,
    words: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    style: Style,
    child: Option<Child>,
}

/// How a process stands beside ours.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// It has a session of its own: it stays when our terminal goes.
    pub own_session: bool,
    /// It is started as root, by sudo.
    pub by_sudo: bool,
}

impl Process {
    /// Not started yet. Its log goes to `folder/name.log`, its number to `folder/name.pid`.
    pub fn new(name: &str, folder: &Path, words: Vec<String>, style: Style) -> Process {
        let log = folder.join(format!("{name}.log"));
        Process { name: name.to_owned(), words, environment: Vec::new(), log, style, child: None }
    }

    /// Variables that it gets beside ours.
    pub fn with_environment(mut self, environment: Vec<(String, String)>) -> Process {
        self.environment = environment;
        self
    }

    /// Starts it; an error if it runs.
    pub fn start(&mut self) -> Result<()> {
        if self.is_running() {
            bail!("{} runs already", self.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("{} cannot be written", self.log.display()))?;
        let mut words = Vec::new();
        if self.style.own_session {
            words.push("setsid".to_owned());
        }
        if self.style.by_sudo {
            words.push("sudo".to_owned());
        }
        words.extend(self.words.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ours may be set for cargo and the tests; a user's server has none of it.
        command.env_remove("RUST_BACKTRACE").envs(self.environment.iter().cloned());
        self.child = Some(command.spawn().with_context(|| format!("{} cannot be started", self.words[0]))?);
        let pid = self.pid().context("it was started just now")?;
        fs::write(self.log.with_extension("pid"), format!("{pid}\n"))?;
        Ok(())
    }

    /// Starts it, and waits until it answers at this path.
    pub fn start_and_answer(&mut self, address: SocketAddr, path: &str, patience: Duration) -> Result<()> {
        self.start()?;
        let until = Instant::now() + patience;
        while http::page(address, path, Duration::from_secs(10)).is_err() {
            if !self.is_running() {
                bail!("{} ended{}", self.name, self.last_words());
            }
            if Instant::now() > until {
                bail!("{} does not answer{}", self.name, self.last_words());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Its number, if it runs.
    pub fn pid(&mut self) -> Option<i32> {
        let child = self.child.as_mut()?;
        if !matches!(child.try_wait(), Ok(None)) {
            return None;
        }
        let started = child.id().cast_signed();
        if !self.style.by_sudo {
            return Some(started);
        }
        // sudo stays in between.
        Some(procfs::all().iter().find(|seen| seen.argv == self.words).map_or(started, |seen| seen.pid))
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.pid().is_some()
    }

    /// Ends it as a power cut would: it cannot say a word.
    pub fn kill9(&mut self) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run{}", self.name, self.last_words()))?;
        procfs::signal(pid, Signal::SIGKILL);
        self.ended(Duration::from_secs(10)).map(drop)
    }

    /// Asks it to end and waits. An error if it does not within `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        let pid = self.pid().with_context(|| format!("{} does not run{}", self.name, self.last_words()))?;
        procfs::signal(pid, Signal::SIGTERM);
        self.ended(patience)
    }

    /// Waits for its end.
    pub fn ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + patience;
        let child = self.child.as_mut().with_context(|| format!("{} was not started", self.name))?;
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > until {
                bail!("{} did not end within {} s", self.name, patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything it logged, over all its starts.
    pub fn log_text(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// For errors: the last lines of its log.
    pub fn last_words(&self) -> String {
        let last = self.last_lines(3);
        if last.is_empty() {
            String::new()
        } else {
            format!("; {}: {}", self.log.display(), last.join(" | "))
        }
    }

    fn last_lines(&self, count: usize) -> Vec<String> {
        let text = self.log_text();
        let mut lines: Vec<String> = Vec::new();
        let mut before = Vec::new();
        for line in text.lines().rev().filter(|line| !line.trim().is_empty()) {
            // Whoever waits asks the same again and again: only time, length and number differ.
            let same = |word: &&str| !word.starts_with("millis=") && !word.starts_with("request_id=");
            let alike: Vec<&str> = line.split(' ').skip(1).filter(same).collect();
            if alike == before {
                continue;
            }
            before = alike;
            lines.push(line.to_owned());
            if lines.len() == count {
                break;
            }
        }
        lines.reverse();
        lines
    }

    /// Lets it run on after us.
    pub fn leave(mut self) {
        self.child = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A test fails: its folder goes, and with it what this one had to say.
            eprintln!("=== the end of {}\n{}", self.log.display(), self.last_lines(LAST).join("\n"));
        }
        if self.is_running() && self.terminate(Duration::from_secs(10)).is_err() {
            let _ = self.kill9();
        }
    }
}
