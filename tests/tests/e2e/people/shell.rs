//! The command line as people use it: a home of their own, and nothing is known but where the API is.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::house::House;

/// A person's home.
pub struct Shell<'a> {
    house: &'a House,
    home: TempDir,
}

impl Shell<'_> {
    /// Nobody has logged in from there yet.
    pub fn new(house: &House) -> Shell<'_> {
        Shell { house, home: tempfile::tempdir().unwrap() }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.house.world.command(words);
        command
            .env_remove("RHYZOME_HOME")
            .env("XDG_CONFIG_HOME", self.home.path())
            .current_dir(self.home.path());
        command
    }

    /// What a command says that does its work.
    pub fn said(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Why a command does not.
    pub fn refused(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    /// Who one is, as far as the server knows.
    pub fn whoami(&self, more: &[&str]) -> Value {
        let said = self.said(&[&["whoami", "--output", "json"], more].concat());
        serde_json::from_str(&said).unwrap()
    }

    /// Runs `rhyzome login`, and does in a browser what it says.
    pub fn login(&self, words: &[&str], person: impl FnOnce(&str)) -> String {
        let mut command = self.command(&[&["login"], words].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let url = line.strip_prefix("open ").unwrap_or_else(|| panic!("{line}")).trim().to_owned();
        person(&url);
        let output = child.wait_with_output().unwrap();
        stderr.read_to_string(&mut line).unwrap();
        assert!(output.status.success(), "{words:?}: {line}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Where a login is kept.
    pub fn file(&self, profile: &str) -> PathBuf {
        self.home.path().join(format!("rhyzome/profiles/{profile}.json"))
    }

    /// What is kept of it.
    pub fn kept(&self, profile: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.file(profile)).unwrap()).unwrap()
    }
}
