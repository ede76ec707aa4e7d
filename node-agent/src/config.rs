//! How the agent is configured: flags over `RHYZOME_AGENT_*` over `rhyzome-agent.json` over what is sensible. Read
//! once at start; whoever needs a value gets it handed.

use crate::accelerator::Wanted;
use crate::wireguard::engine;
use clap::ValueEnum;
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};

/// The file's name, looked for in the working directory, then in [`FOLDER`].
pub const FILE: &str = "rhyzome-agent.json";
/// Where a service's configuration is.
pub const FOLDER: &str = "/etc/rhyzome";
/// The agent's own folder, where none is named.
const STATE_DIR: &str = "/var/lib/rhyzome";
/// The front of every variable.
pub const PREFIX: &str = "RHYZOME_AGENT_";

/// Why the configuration cannot be used: one line that names the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A variable.
    #[error("{PREFIX}{name}: {reason}")]
    Variable {
        /// Without the prefix.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// Values given in one place; what is not given is left to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The agent's own folder [default: /var/lib/rhyzome]
    #[arg(long, global = true)]
    pub state_dir: Option<PathBuf>,
    /// The server, HOST:PORT; several with commas between [default: the one it joined at]
    #[arg(long, global = true)]
    pub server: Option<String>,
    /// The user to become when started as root [default: rhyzome]
    #[arg(long, global = true)]
    pub user: Option<String>,
    /// What guests run on [default: auto]
    #[arg(long, global = true, value_enum)]
    pub accelerator: Option<Wanted>,
    /// What carries WireGuard tunnels [default: auto]
    #[arg(long, global = true, value_enum)]
    pub wireguard: Option<engine::Wanted>,
    /// What to log, as in "info" or "rhyzome_agent=debug" [default: info]
    #[arg(long, global = true)]
    pub log: Option<String>,
    /// Log JSON lines instead of text [default: false]
    #[arg(long, global = true, num_args = 0..=1, default_missing_value = "true")]
    pub log_json: Option<bool>,
    /// What this boot of the machine and the machine itself are called, BOOT or BOOT/MACHINE: for rehearsals
    #[arg(long, global = true, hide = true)]
    pub pretend: Option<String>,
}

/// The agent's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The agent's own folder.
    pub state_dir: PathBuf,
    /// The server, if it is not the one that the node joined at.
    pub server: Option<String>,
    /// The user to become when started as root.
    pub user: String,
    /// What guests run on.
    pub accelerator: Wanted,
    /// What carries WireGuard tunnels.
    pub wireguard: engine::Wanted,
    /// What to log.
    pub log: String,
    /// Log JSON lines.
    pub log_json: bool,
    /// Another boot and another machine than these are: for rehearsals of reboots and of clones.
    pub pretend: Option<String>,
}

impl Config {
    /// Puts together what flags, variables and file say.
    pub fn load(
        flags: Settings,
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Self::load_beside(flags, file, variables, STATE_DIR)
    }

    /// The same, with another folder where none is named.
    pub fn load_beside(
        flags: Settings,
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        state_dir: &str,
    ) -> Result<Self, ConfigError> {
        let file = match file {
            Some(path) => Some(path.to_owned()),
            None => [Path::new(FILE).to_owned(), Path::new(FOLDER).join(FILE)]
                .into_iter()
                .find(|path| path.exists()),
        };
        let from_file = file.as_deref().map(read).transpose()?.unwrap_or_default();
        let all = flags.or(from_variables(variables)?).or(from_file);
        let state_dir = all.state_dir.unwrap_or_else(|| state_dir.into());
        // QEMU runs in a folder of its own, and a disk remembers its image by path: neither may be relative.
        let state_dir = std::path::absolute(&state_dir).map_err(|error| ConfigError::File {
            path: state_dir.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            state_dir,
            server: all.server.map(|server| host_and_port(&server)),
            user: all.user.unwrap_or_else(|| "rhyzome".into()),
            accelerator: all.accelerator.unwrap_or(Wanted::Auto),
            wireguard: all.wireguard.unwrap_or_default(),
            log: all.log.unwrap_or_else(|| "info".into()),
            log_json: all.log_json.unwrap_or(false),
            pretend: all.pretend,
        })
    }
}

impl Settings {
    fn or(self, other: Self) -> Self {
        Self {
            state_dir: self.state_dir.or(other.state_dir),
            server: self.server.or(other.server),
            user: self.user.or(other.user),
            accelerator: self.accelerator.or(other.accelerator),
            wireguard: self.wireguard.or(other.wireguard),
            log: self.log.or(other.log),
            log_json: self.log_json.or(other.log_json),
            pretend: self.pretend.or(other.pretend),
        }
    }
}

/// What the API shows is a URL; what is dialed is what it names.
fn host_and_port(servers: &str) -> String {
    let one = |server: &str| server.trim().trim_start_matches("https://").trim_end_matches('/').to_owned();
    servers.split(',').map(one).collect::<Vec<_>>().join(",")
}

fn read(path: &Path) -> Result<Settings, ConfigError> {
    let failed = |reason: String| ConfigError::File { path: path.display().to_string(), reason };
    let bytes = std::fs::read(path).map_err(|error: io::Error| failed(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
}

fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    for (key, value) in variables {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let failed = |reason: String| ConfigError::Variable { name: name.to_owned(), reason };
        match name {
            "STATE_DIR" => settings.state_dir = Some(value.into()),
            "SERVER" => settings.server = Some(value),
            "USER" => settings.user = Some(value),
            "LOG" => settings.log = Some(value),
            "ACCELERATOR" => {
                let wanted = Wanted::from_str(&value, false)
                    .map_err(|_| failed(format!("{value:?} is none of auto, kvm, tcg")))?;
                settings.accelerator = Some(wanted);
            }
            "WIREGUARD" => {
                let wanted = engine::Wanted::from_str(&value, false)
                    .map_err(|_| failed(format!("{value:?} is none of auto, kernel, userspace")))?;
                settings.wireguard = Some(wanted);
            }
            "LOG_JSON" => {
                let flag = value.parse().map_err(|_| failed(format!("{value:?} is none of true, false")))?;
                settings.log_json = Some(flag);
            }
            // Not configuration: a secret for one subcommand, and the file's own place.
            "TOKEN" | "CONFIG" | "NAME" => {}
            _ => return Err(failed("unknown; see `rhyzome-agent --help`".into())),
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn flags_come_before_variables_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(
            &file,
            r#"{"server":"file:1","log":"file","user":"file","accelerator":"kvm","wireguard":"kernel"}"#,
        )
        .unwrap();
        let flags = Settings { log: Some("flag".into()), ..Settings::default() };
        let given = variables(&[
            ("RHYZOME_AGENT_SERVER", "https://variable:1/"),
            ("RHYZOME_AGENT_LOG", "x"),
            ("PATH", "/"),
        ]);
        let config = Config::load(flags, Some(&file), given).unwrap();
        assert_eq!(config.log, "flag");
        assert_eq!(config.server.as_deref(), Some("variable:1"));
        assert_eq!((config.user.as_str(), config.accelerator), ("file", Wanted::Kvm));
        assert_eq!(config.wireguard, engine::Wanted::Kernel);
        assert_eq!(config.state_dir, Path::new("/var/lib/rhyzome"));
    }

    #[test]
    fn what_is_wrong_is_named_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(&file, r#"{"sever":"x"}"#).unwrap();
        let load = |file: Option<&Path>, given: &[(&str, &str)]| {
            Config::load(Settings::default(), file, variables(given)).unwrap_err().to_string()
        };
        let unknown = load(Some(&file), &[]);
        assert!(unknown.contains("config.json: unknown field `sever`"), "{unknown}");
        let missing = load(Some(&folder.path().join("none.json")), &[]);
        assert!(missing.contains("none.json: No such file"), "{missing}");
        let bad = load(None, &[("RHYZOME_AGENT_ACCELERATOR", "warp")]);
        assert_eq!(bad, "RHYZOME_AGENT_ACCELERATOR: \"warp\" is none of auto, kvm, tcg");
        let neither = load(None, &[("RHYZOME_AGENT_WIREGUARD", "both")]);
        assert_eq!(neither, "RHYZOME_AGENT_WIREGUARD: \"both\" is none of auto, kernel, userspace");
        std::fs::write(&file, r#"{"wireguard":"both"}"#).unwrap();
        let in_file = load(Some(&file), &[]);
        assert!(in_file.contains("unknown variant `both`, expected one of `auto`, `kernel`"), "{in_file}");
        let strange = load(None, &[("RHYZOME_AGENT_SEVER", "x")]);
        assert!(strange.starts_with("RHYZOME_AGENT_SEVER: unknown"), "{strange}");
        for text in [unknown, missing, bad, neither, in_file, strange] {
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}
