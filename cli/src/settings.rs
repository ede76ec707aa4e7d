//! Where the server is, and the token: from flags, the environment, a login that was kept, or the folder of a server on
//! this machine, which holds a `client.json`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ArgMatches;
use rhyzome_client::{Login, Settings};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::profiles::{DEFAULT, Profiles};

/// What is around this process. Read once, at start.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Folders in which a server may have left its `client.json`, best first.
    pub folders: Vec<PathBuf>,
    /// The one folder is meant, whatever else there is.
    pub said: bool,
    /// Where logins are kept; nowhere, for whoever has no home.
    pub logins: Option<PathBuf>,
}

/// What was found: which server, and how one is let in.
#[derive(Debug)]
pub struct Chosen {
    /// For the client; without its token, if that is one of a login.
    pub settings: Settings,
    /// The name of the login that is meant, whether there is one or not.
    pub profile: String,
    /// Where the login is whose token is to be shown.
    pub login: Option<Profiles>,
}

impl Surroundings {
    /// That of this process.
    pub fn of_process() -> Surroundings {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
        let logins = config.map(|config| config.join("rhyzome/profiles"));
        if let Some(home) = variable("RHYZOME_HOME") {
            // Said: then no other is meant.
            return Surroundings { folders: vec![home], said: true, logins };
        }
        let own = variable("HOME").map(|home| home.join(".local/share/rhyzome"));
        let folders = [Some(PathBuf::from("var/rhyzome")), own, Some(PathBuf::from("/var/lib/rhyzome"))];
        Surroundings { folders: folders.into_iter().flatten().collect(), said: false, logins }
    }

    /// The logins that were kept.
    pub fn profiles(&self) -> anyhow::Result<Profiles> {
        let folder =
            self.logins.clone().context("there is no place for logins: set HOME or XDG_CONFIG_HOME")?;
        Ok(Profiles::new(folder))
    }
}

/// What a folder of a server says.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    url: String,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

/// The settings to use. A login that is named counts before all but a token; one that is not, only where no folder of a
/// server was said, and for its own server.
pub fn settings(matches: &ArgMatches, around: &Surroundings) -> anyhow::Result<Chosen> {
    let said = |name: &str| matches.get_one::<String>(name).cloned();
    let named = said("profile");
    let profile = named.clone().unwrap_or_else(|| DEFAULT.to_owned());
    if said("token").is_some() || said("as").is_some() || (named.is_none() && around.said) {
        return server(matches, around);
    }
    let profiles = match (&named, around.profiles()) {
        (_, Ok(profiles)) => profiles,
        (None, Err(_)) => return server(matches, around),
        (Some(_), Err(error)) => return Err(error),
    };
    let kept = match (profiles.read(&profile)?, &named) {
        (Some(kept), _) => kept,
        (None, None) => return server(matches, around),
        (None, Some(name)) => bail!("there is no login `{name}`: `rhyzome login --profile {name}` makes one"),
    };
    let other = said("url").is_some_and(|url| url.trim_end_matches('/') != kept.url.trim_end_matches('/'));
    match (other, named) {
        (true, Some(name)) => bail!("the login `{name}` is for {}, not for the --url given", kept.url),
        (true, None) => server(matches, around),
        (false, _) => {
            let ca = said("ca").map(PathBuf::from).or(kept.ca);
            let ca_pem = ca.map(|file| read(&file).map(String::into_bytes)).transpose()?;
            let settings = Settings { url: kept.url, ca_pem, ..Settings::default() };
            Ok(Chosen { settings, profile, login: Some(profiles) })
        }
    }
}

/// The server, and the token that was said or that it has left for us: whatever logins there are.
pub fn server(matches: &ArgMatches, around: &Surroundings) -> anyhow::Result<Chosen> {
    let said = |name: &str| matches.get_one::<String>(name).cloned();
    let profile = said("profile").unwrap_or_else(|| DEFAULT.to_owned());
    let (url, token, ca) = (said("url"), said("token"), said("ca"));
    let found = around.folders.iter().find_map(|folder| found_in(folder).transpose()).transpose()?;
    // A local server's token goes to that server and to no other.
    let same = |found: &Found| url.as_ref().is_none_or(|url| url.trim_end_matches('/') == found.url);
    let found = found.filter(same);
    let Some(url) = url.or_else(|| found.as_ref().map(|found| found.url.clone())) else {
        let places: Vec<String> = around.folders.iter().map(|folder| folder.display().to_string()).collect();
        bail!(
            "no server is known: `rhyzome login --url URL`, or say --url and --token (RHYZOME_URL, RHYZOME_TOKEN), or \
             start one here with `rhyzome-api`\n  no client.json in {}",
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
    // Whoever says who they are is meant, and not the operator whose token lies about.
    let login = login(matches)?;
    let token = token.filter(|_| login.is_none());
    Ok(Chosen { settings: Settings { url, token, login, ca_pem }, profile, login: None })
}

/// Name and password, if a name was said.
fn login(matches: &ArgMatches) -> anyhow::Result<Option<Login>> {
    let said = |name: &str| matches.get_one::<String>(name).cloned();
    let Some(name) = said("as") else { return Ok(None) };
    let password = match said("password-file") {
        Some(file) => Zeroizing::new(read(Path::new(&file))?.trim_end_matches(['\r', '\n']).to_owned()),
        None => crate::terminal::password(&name)?,
    };
    Ok(Some(Login { name, password, code: said("otp") }))
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
        Ok(settings(&matches, &Surroundings { folders, ..Surroundings::default() })?.settings)
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

    fn chosen(arguments: &[&str], around: &Surroundings) -> anyhow::Result<Chosen> {
        let arguments = ["rhyzome", "whoami"].iter().chain(arguments);
        let matches = crate::command::command(&Kinds::known())
            .mut_args(|arg| arg.env(None::<&str>))
            .get_matches_from(arguments);
        settings(&matches, around)
    }

    #[test]
    fn a_login_counts_for_its_own_server() {
        let (server, home) = (folder(), tempfile::tempdir().unwrap());
        let mut around = Surroundings {
            folders: vec![server.path().to_owned()],
            said: false,
            logins: Some(home.path().to_owned()),
        };
        let token = |chosen: Chosen| (chosen.settings.url, chosen.settings.token, chosen.login.is_some());
        let local = ("https://127.0.0.1:1".to_owned(), Some("secret".to_owned()), false);
        assert_eq!(token(chosen(&[], &around).unwrap()), local);
        let kept = crate::profiles::tests::profile("https://api.example");
        around.profiles().unwrap().write(DEFAULT, &kept).unwrap();
        around.profiles().unwrap().write("acme", &kept).unwrap();
        let login = ("https://api.example".to_owned(), None, true);
        assert_eq!(token(chosen(&[], &around).unwrap()), login);
        assert_eq!(token(chosen(&["--url", "https://api.example/"], &around).unwrap()), login);
        assert_eq!(token(chosen(&["--profile", "acme"], &around).unwrap()), login);
        assert_eq!(token(chosen(&["--url", "https://127.0.0.1:1"], &around).unwrap()), local);
        let said = token(chosen(&["--url", "https://api.example", "--token", "t"], &around).unwrap());
        assert_eq!(said, ("https://api.example".to_owned(), Some("t".to_owned()), false));
        let error = chosen(&["--profile", "other"], &around).unwrap_err().to_string();
        assert!(error.contains("rhyzome login --profile other"), "{error}");
        let error =
            chosen(&["--profile", "acme", "--url", "https://evil.example"], &around).unwrap_err().to_string();
        assert!(error.contains("is for https://api.example"), "{error}");
        // A folder that was said is meant, unless a login is named.
        around.said = true;
        assert_eq!(token(chosen(&[], &around).unwrap()), local);
        assert_eq!(token(chosen(&["--profile", "acme"], &around).unwrap()), login);
    }
}
