//! Where the server is, and the token: from flags, the environment, or the folder of a server on this
//! machine, which holds a `client.json`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ArgMatches;
use rhyzome_client::Settings;
use serde_json::Value;

/// What is around this process. Read once, at start.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Folders in which a server may have left its `client.json`, best first.
    pub folders: Vec<PathBuf>,
}

impl Surroundings {
    /// That of this process.
    pub fn of_process() -> Surroundings {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(home) = variable("RHYZOME_HOME") {
            // Said: then no other is meant.
            return Surroundings { folders: vec![home] };
        }
        let own = variable("HOME").map(|home| home.join(".local/share/rhyzome"));
        let folders = [Some(PathBuf::from("var/rhyzome")), own, Some(PathBuf::from("/var/lib/rhyzome"))];
        Surroundings { folders: folders.into_iter().flatten().collect() }
    }
}

/// What a folder of a server says.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    url: String,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

/// The settings to use.
pub fn settings(matches: &ArgMatches, around: &Surroundings) -> anyhow::Result<Settings> {
    let said = |name: &str| matches.get_one::<String>(name).cloned();
    let (url, token, ca) = (said("url"), said("token"), said("ca"));
    let found = around.folders.iter().find_map(|folder| found_in(folder).transpose()).transpose()?;
    // A local server's token goes to that server and to no other.
    let same = |found: &Found| url.as_ref().is_none_or(|url| url.trim_end_matches('/') == found.url);
    let found = found.filter(same);
    let Some(url) = url.or_else(|| found.as_ref().map(|found| found.url.clone())) else {
        let places: Vec<String> = around.folders.iter().map(|folder| folder.display().to_string()).collect();
        bail!(
            "no server is known: say --url and --token (RHYZOME_URL, RHYZOME_TOKEN), or start one here with \
             `rhyzome-api`\n  no client.json in {}",
            places.join(", ")
        );
    };
    let found = found.unwrap_or_default();
    let token = match (token, found.token_file) {
        (None, Some(file)) => Some(read(&file)?.trim().to_owned()),
        (token, _) => token,
    };
    let ca_pem = match ca.map(PathBuf::from).or(found.ca_file.filter(|_| url.starts_with("https:"))) {
        Some(file) => Some(read(&file)?.into_bytes()),
        None => None,
    };
    Ok(Settings { url, token, ca_pem })
}

fn found_in(folder: &Path) -> anyhow::Result<Option<Found>> {
    let file = folder.join("client.json");
    if !file.try_exists().unwrap_or(true) {
        return Ok(None);
    }
    let value: Value =
        serde_json::from_str(&read(&file)?).with_context(|| format!("{} is no JSON", file.display()))?;
    let path = |key: &str| value[key].as_str().map(|path| folder.join(path));
    let url = value["url"].as_str().with_context(|| format!("{} has no `url`", file.display()))?;
    let url = url.trim_end_matches('/').to_owned();
    Ok(Some(Found { url, token_file: path("token_file"), ca_file: path("ca_file") }))
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| {
        format!(
            "{} cannot be read (run as the server's user, or give --url, --token and --ca)",
            file.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use rhyzome_client::Kinds;

    use super::*;

    fn with(arguments: &[&str], folders: &[&Path]) -> anyhow::Result<Settings> {
        let arguments = ["rhyzome", "whoami"].iter().chain(arguments);
        let matches = crate::command::command(&Kinds::known())
            .mut_args(|arg| arg.env(None::<&str>))
            .get_matches_from(arguments);
        let folders = folders.iter().map(|folder| folder.to_path_buf()).collect();
        settings(&matches, &Surroundings { folders })
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let client = r#"{"url": "https://127.0.0.1:1/", "token_file": "token", "ca_file": "ca.pem"}"#;
        std::fs::write(folder.path().join("client.json"), client).unwrap();
        std::fs::write(folder.path().join("token"), "secret\n").unwrap();
        std::fs::write(folder.path().join("ca.pem"), "pem").unwrap();
        folder
    }

    #[test]
    fn a_local_server_is_found() {
        let (nothing, folder) = (tempfile::tempdir().unwrap(), folder());
        let found = with(&[], &[nothing.path(), folder.path()]).unwrap();
        assert_eq!(found.url, "https://127.0.0.1:1");
        assert_eq!(found.token.as_deref(), Some("secret"));
        assert_eq!(found.ca_pem.as_deref(), Some(&b"pem"[..]));
    }

    #[test]
    fn flags_win_and_the_token_stays_at_home() {
        let folder = folder();
        let other = with(&["--url", "http://other"], &[folder.path()]).unwrap();
        assert_eq!((other.url.as_str(), other.token, other.ca_pem), ("http://other", None, None));
        let own = with(&["--token", "mine"], &[folder.path()]).unwrap();
        assert_eq!(own.token.as_deref(), Some("mine"));
    }

    #[test]
    fn nothing_found_says_where_it_looked() {
        let nothing = tempfile::tempdir().unwrap();
        let said = with(&[], &[nothing.path()]).unwrap_err().to_string();
        assert!(said.contains("--url") && said.contains(&nothing.path().display().to_string()), "{said}");
    }
}
