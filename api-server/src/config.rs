//! Configuration: no file needed. `rhyzome-api.json` in the working directory or in /etc/rhyzome, the
//! environment (`RHYZOME_*`) over it. The environment is read here, once, and nowhere else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::auth::{AuthConfig, AuthFile, REALM, RealmsConfig, RealmsFile};
use crate::kernel::secret::Plain;
use crate::limits::{LimitsConfig, LimitsFile};
use crate::metrics::{MetricsConfig, MetricsFile};
use crate::store::{Keep, KeepHistory};

/// What is wrong with the configuration: one line that names the key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// The file's keys. Every one may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    db: Option<String>,
    data: Option<PathBuf>,
    user: Option<String>,
    http: Listen,
    grpc: Grpc,
    pki: Pki,
    images: Images,
    quota: BTreeMap<String, u64>,
    events: Events,
    history: History,
    sealing: SealingKeys,
    outbound: Outbound,
    webhooks: Webhooks,
    auth: AuthFile,
    keycloak: RealmsFile,
    metrics: MetricsFile,
    limits: LimitsFile,
}

/// Whom the server may call besides the internet.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Outbound {
    allow: Vec<ipnet::IpNet>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Webhooks {
    http: bool,
}

/// Where the keys are that seal secrets.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SealingKeys {
    key_file: Option<PathBuf>,
    keys: Option<String>,
}

impl std::fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealingKeys").field("key_file", &self.key_file).finish_non_exhaustive()
    }
}

/// How much of the event log is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Events {
    keep_days: Option<u32>,
    keep_entries: Option<u32>,
}

/// How long jobs, revisions and answers are kept.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct History {
    job_days: Option<u32>,
    revision_days: Option<u32>,
    answer_hours: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Listen {
    listen: Option<String>,
    names: Vec<String>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// Agents believe the cluster's own authority only: no certificate from elsewhere.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Grpc {
    listen: Option<String>,
    names: Vec<String>,
    advertise: Option<String>,
    heartbeat_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Pki {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    leaf_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Images {
    folder: Option<PathBuf>,
    max_bytes: Option<u64>,
}

/// What the server runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// `sqlite:` or `postgres:` URL, or a libpq string.
    pub db: String,
    /// Everything that is not in the database is under here.
    pub data: PathBuf,
    /// The user to become when started as root.
    pub user: String,
    /// Where REST listens.
    pub http: SocketAddr,
    /// Names and addresses that clients use for REST, beside those it listens on.
    pub http_names: Vec<String>,
    /// Certificate chain and key for REST, from elsewhere.
    pub http_certificate: Option<(PathBuf, PathBuf)>,
    /// Where agents dial in.
    pub grpc: SocketAddr,
    /// Names and addresses that agents use.
    pub grpc_names: Vec<String>,
    /// Where other servers of the cluster reach that door, `HOST:PORT`, if not where it listens.
    pub grpc_advertise: Option<String>,
    /// How often agents say that they are there.
    pub heartbeat_seconds: u32,
    /// The root of a CA from elsewhere, and the issuing certificate and key below it.
    pub pki: Option<PkiFiles>,
    /// How long agents' certificates live.
    pub leaf_seconds: u64,
    /// qcow2 files in this folder become global images.
    pub images_folder: Option<PathBuf>,
    /// The largest image that is taken.
    pub image_max_bytes: u64,
    /// What a tenant may use of a quantity when its spec does not say; no limit where nothing is said here.
    pub quota: BTreeMap<String, u64>,
    /// How much of the event log is kept.
    pub events: Keep,
    /// How long ended jobs and old revisions are kept.
    pub history: KeepHistory,
    /// How long answers to requests under an `Idempotency-Key` are kept.
    pub answer_seconds: i64,
    /// Where the keys are that seal secrets.
    pub sealing: Sealing,
    /// Ranges that may be called although they are private.
    pub outbound_allow: Vec<ipnet::IpNet>,
    /// Webhooks may be called without TLS.
    pub webhooks_http: bool,
    /// Who knows callers, besides the operator's token.
    pub auth: AuthConfig,
    /// Where the realms of tenants are, if anywhere.
    pub keycloak: Option<RealmsConfig>,
    /// Where this server's metrics are served, if anywhere.
    pub metrics: Option<MetricsConfig>,
    /// What each may have of the server.
    pub limits: LimitsConfig,
}

/// Where the keys are that seal secrets.
#[derive(Clone, Debug)]
pub enum Sealing {
    /// In the folder of data, made at the first start.
    Own,
    /// In this file.
    File(PathBuf),
    /// These, in base64, one a line or with commas between; the last one seals.
    Given(Plain),
}

/// A CA from files.
#[derive(Clone, Debug)]
pub struct PkiFiles {
    /// The root certificate.
    pub ca: PathBuf,
    /// The issuing certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Where a file is looked for, in this order.
const FILES: [&str; 2] = ["rhyzome-api.json", "/etc/rhyzome/rhyzome-api.json"];

/// The environment's variables and the keys that they stand for.
const VARIABLES: &[(&str, &str)] = &[
    ("RHYZOME_DB", "db"),
    ("RHYZOME_DATA", "data"),
    ("RHYZOME_USER", "user"),
    ("RHYZOME_HTTP_LISTEN", "http.listen"),
    ("RHYZOME_HTTP_CERT", "http.cert"),
    ("RHYZOME_HTTP_KEY", "http.key"),
    ("RHYZOME_GRPC_LISTEN", "grpc.listen"),
    ("RHYZOME_GRPC_ADVERTISE", "grpc.advertise"),
    ("RHYZOME_GRPC_HEARTBEAT_SECONDS", "grpc.heartbeat_seconds"),
    ("RHYZOME_PKI_CA", "pki.ca"),
    ("RHYZOME_PKI_CERT", "pki.cert"),
    ("RHYZOME_PKI_KEY", "pki.key"),
    ("RHYZOME_PKI_LEAF_SECONDS", "pki.leaf_seconds"),
    ("RHYZOME_IMAGES_FOLDER", "images.folder"),
    ("RHYZOME_IMAGES_MAX_BYTES", "images.max_bytes"),
    ("RHYZOME_EVENTS_KEEP_DAYS", "events.keep_days"),
    ("RHYZOME_EVENTS_KEEP_ENTRIES", "events.keep_entries"),
    ("RHYZOME_HISTORY_JOB_DAYS", "history.job_days"),
    ("RHYZOME_HISTORY_REVISION_DAYS", "history.revision_days"),
    ("RHYZOME_HISTORY_ANSWER_HOURS", "history.answer_hours"),
    ("RHYZOME_SEALING_KEY_FILE", "sealing.key_file"),
    ("RHYZOME_SEALING_KEYS", "sealing.keys"),
    ("RHYZOME_OUTBOUND_ALLOW", "outbound.allow"),
    ("RHYZOME_WEBHOOKS_HTTP", "webhooks.http"),
    ("RHYZOME_METRICS_LISTEN", "metrics.listen"),
    ("RHYZOME_METRICS_TOKEN_FILE", "metrics.token_file"),
    ("RHYZOME_AUTH_CA", "auth.ca"),
    ("RHYZOME_AUTH_ALLOW", "auth.allow"),
];

/// Variables that belong to the client or the agent: they may be set beside ours.
const OTHERS: &[&str] =
    &["RHYZOME_URL", "RHYZOME_TOKEN", "RHYZOME_CA", "RHYZOME_HOME", "RHYZOME_TENANT", "RHYZOME_PROFILE"];

impl Config {
    /// Reads the file (the one given, else the first that is there) and the environment.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let mut json = match file {
            Some(path) => read(path)?,
            None => match FILES.iter().map(Path::new).find(|path| path.exists()) {
                Some(path) => read(path)?,
                None => serde_json::json!({}),
            },
        };
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        overlay(&mut json, &environment)?;
        let file: File = serde_path(json)?;
        resolve(file)
    }
}

fn read(path: &Path) -> Result<serde_json::Value, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| ConfigError(format!("the configuration file {} cannot be read: {e}", path.display())))?;
    let json: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| ConfigError(format!("the configuration file {} is not JSON: {e}", path.display())))?;
    if !json.is_object() {
        return Err(ConfigError(format!("the configuration file {} must hold an object", path.display())));
    }
    Ok(json)
}

fn overlay(json: &mut serde_json::Value, environment: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("RHYZOME_")) {
        if OTHERS.contains(&name.as_str()) || name.starts_with("RHYZOME_AGENT_") {
            continue;
        }
        let Some((_, key)) = VARIABLES.iter().find(|(variable, _)| variable == name) else {
            let known: Vec<_> = VARIABLES.iter().map(|(variable, _)| *variable).collect();
            return Err(ConfigError(format!("{name} is not known; known are {}", known.join(", "))));
        };
        let value = match *key {
            "grpc.heartbeat_seconds"
            | "pki.leaf_seconds"
            | "images.max_bytes"
            | "events.keep_days"
            | "events.keep_entries"
            | "history.job_days"
            | "history.revision_days"
            | "history.answer_hours" => {
                let number: u64 =
                    value.parse().map_err(|_| ConfigError(format!("{name} must be a number")))?;
                serde_json::json!(number)
            }
            "webhooks.http" => {
                let truth: bool =
                    value.parse().map_err(|_| ConfigError(format!("{name} must be `true` or `false`")))?;
                serde_json::json!(truth)
            }
            "outbound.allow" | "auth.allow" => {
                serde_json::json!(value.split(',').map(str::trim).collect::<Vec<_>>())
            }
            _ => serde_json::json!(value),
        };
        match key.split_once('.') {
            None => json[*key] = value,
            Some((room, key)) => json[room][key] = value,
        }
    }
    Ok(())
}

fn serde_path(json: serde_json::Value) -> Result<File, ConfigError> {
    // Room by room, so that the error can name the whole key.
    let rooms = [
        "http", "grpc", "pki", "images", "quota", "events", "history", "sealing", "outbound", "webhooks",
        "auth", "keycloak", "metrics", "limits",
    ];
    for room in rooms {
        let Some(part) = json.get(room) else { continue };
        let outcome = match room {
            "http" => Listen::deserialize(part).map(drop),
            "grpc" => Grpc::deserialize(part).map(drop),
            "pki" => Pki::deserialize(part).map(drop),
            "images" => Images::deserialize(part).map(drop),
            "events" => Events::deserialize(part).map(drop),
            "history" => History::deserialize(part).map(drop),
            "sealing" => SealingKeys::deserialize(part).map(drop),
            "outbound" => Outbound::deserialize(part).map(drop),
            "webhooks" => Webhooks::deserialize(part).map(drop),
            "metrics" => MetricsFile::deserialize(part).map(drop),
            "limits" => LimitsFile::deserialize(part).map(drop),
            "auth" => AuthFile::deserialize(part).map(drop),
            "keycloak" => RealmsFile::deserialize(part).map(drop),
            _ => BTreeMap::<String, u64>::deserialize(part).map(drop),
        };
        outcome.map_err(|e| ConfigError(format!("configuration key `{room}`: {e}")))?;
    }
    File::deserialize(json).map_err(|e| ConfigError(format!("configuration: {e}")))
}

fn resolve(file: File) -> Result<Config, ConfigError> {
    let data = file.data.unwrap_or_else(|| PathBuf::from("var/rhyzome"));
    let db = file.db.unwrap_or_else(|| format!("sqlite:{}", data.join("rhyzome.db").display()));
    db.parse::<crate::store::DbUrl>().map_err(|e| ConfigError(format!("configuration key `db`: {e}")))?;
    let http = address("http.listen", file.http.listen.as_deref().unwrap_or("127.0.0.1:8440"))?;
    let grpc = address("grpc.listen", file.grpc.listen.as_deref().unwrap_or("127.0.0.1:8441"))?;
    let http_certificate = match (file.http.cert, file.http.key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((there("http.cert", cert)?, there("http.key", key)?)),
        (Some(_), None) => return Err(ConfigError("`http.cert` needs `http.key` beside it".into())),
        (None, Some(_)) => return Err(ConfigError("`http.key` needs `http.cert` beside it".into())),
    };
    let pki = match (file.pki.ca, file.pki.cert, file.pki.key) {
        (None, None, None) => None,
        (Some(ca), Some(cert), Some(key)) => Some(PkiFiles {
            ca: there("pki.ca", ca)?,
            cert: there("pki.cert", cert)?,
            key: there("pki.key", key)?,
        }),
        _ => {
            return Err(ConfigError(
                "`pki.ca`, `pki.cert` and `pki.key` belong together: give all three".into(),
            ));
        }
    };
    let heartbeat_seconds = file.grpc.heartbeat_seconds.unwrap_or(10);
    if !(1..=300).contains(&heartbeat_seconds) {
        return Err(ConfigError("`grpc.heartbeat_seconds` must be 1 to 300".into()));
    }
    let leaf_seconds = file.pki.leaf_seconds.unwrap_or(24 * 3600);
    if leaf_seconds < 60 {
        return Err(ConfigError("`pki.leaf_seconds` must be at least 60".into()));
    }
    let auth = file.auth.resolve().map_err(|why| ConfigError(format!("configuration key {why}")))?;
    let keycloak = file.keycloak.resolve().map_err(ConfigError)?;
    if keycloak.is_some() && auth.has(REALM) {
        return Err(ConfigError(format!(
            "configuration key `auth.authenticators`: names that begin with `{REALM}` are those of tenants' realms"
        )));
    }
    let images_folder = file.images.folder.map(|folder| there("images.folder", folder)).transpose()?;
    Ok(Config {
        db,
        data,
        user: file.user.unwrap_or_else(|| "rhyzome".into()),
        http,
        http_names: file.http.names,
        http_certificate,
        grpc,
        grpc_names: file.grpc.names,
        grpc_advertise: file.grpc.advertise.map(|text| host_and_port("grpc.advertise", text)).transpose()?,
        heartbeat_seconds,
        pki,
        leaf_seconds,
        images_folder,
        image_max_bytes: file.images.max_bytes.unwrap_or(64 << 30),
        quota: known_quantities(file.quota)?,
        events: keep(&file.events)?,
        history: KeepHistory {
            jobs: days("history.job_days", file.history.job_days)?,
            revisions: days("history.revision_days", file.history.revision_days)?,
        },
        answer_seconds: positive("history.answer_hours", file.history.answer_hours)?.unwrap_or(24) * 3600,
        sealing: sealing(file.sealing)?,
        outbound_allow: file.outbound.allow,
        webhooks_http: file.webhooks.http,
        metrics: file.metrics.resolve().map_err(ConfigError)?,
        limits: file.limits.resolve().map_err(ConfigError)?,
        keycloak,
        auth,
    })
}

fn sealing(keys: SealingKeys) -> Result<Sealing, ConfigError> {
    match (keys.key_file, keys.keys) {
        (None, None) => Ok(Sealing::Own),
        (Some(path), None) => Ok(Sealing::File(there("sealing.key_file", path)?)),
        (None, Some(keys)) => Ok(Sealing::Given(Plain::new(keys))),
        (Some(_), Some(_)) => Err(ConfigError(
            "give `sealing.key_file` or `sealing.keys`, not both: there is one place for keys".into(),
        )),
    }
}

fn keep(events: &Events) -> Result<Keep, ConfigError> {
    let entries = positive("events.keep_entries", events.keep_entries)?;
    Ok(Keep { seconds: days("events.keep_days", events.keep_days)?, entries })
}

/// In seconds.
fn days(key: &str, value: Option<u32>) -> Result<Option<i64>, ConfigError> {
    Ok(positive(key, value)?.map(|days| days * 24 * 3600))
}

fn positive(key: &str, value: Option<u32>) -> Result<Option<i64>, ConfigError> {
    match value {
        Some(0) => {
            let rest = if key.ends_with("hours") { "for 24" } else { "to keep everything" };
            Err(ConfigError(format!("`{key}` must be at least 1; leave it out {rest}")))
        }
        value => Ok(value.map(i64::from)),
    }
}

fn known_quantities(quota: BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>, ConfigError> {
    let known = crate::kernel::quota::quantities(&crate::resources::registry());
    for (quantity, limit) in &quota {
        if !known.contains(quantity) {
            let words = known.join(", ");
            return Err(ConfigError(format!(
                "configuration key `quota.{quantity}` is not known; known are {words}"
            )));
        }
        if i64::try_from(*limit).is_err() {
            return Err(ConfigError(format!(
                "configuration key `quota.{quantity}` must be at most {}",
                i64::MAX
            )));
        }
    }
    Ok(quota)
}

fn address(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse()
        .map_err(|_| ConfigError(format!("`{key}`: `{text}` is not ADDRESS:PORT, such as 127.0.0.1:8440")))
}

/// A name or an address, and a port: `api1.example.com:8441`, `[2001:db8::1]:8441`.
fn host_and_port(key: &str, text: String) -> Result<String, ConfigError> {
    let host = text.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().map(|_| host));
    let good = |host: &str| !host.is_empty() && (host.ends_with(']') || !host.contains([':', '/', '@', ' ']));
    if host.is_some_and(good) {
        return Ok(text);
    }
    Err(ConfigError(format!("`{key}`: `{text}` is not HOST:PORT, such as api1.example.com:8441")))
}

fn there(key: &str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    match std::fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(ConfigError(format!("`{key}`: {} cannot be read: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests;
