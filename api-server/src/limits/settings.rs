//! The configuration's room `limits`.

use std::time::Duration;

use serde::Deserialize;

use super::rate::Rate;

/// As the file has it. What is left out is as `LimitsConfig::default` has it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFile {
    caller: ShareFile,
    tenant: ShareFile,
    strangers: RateFile,
    server: ServerFile,
    body: BodyFile,
    connections: ConnectionsFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ShareFile {
    rate: Option<u32>,
    burst: Option<u32>,
    requests: Option<u32>,
    streams: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RateFile {
    rate: Option<u32>,
    burst: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServerFile {
    working: Option<u32>,
    working_of_one_tenant: Option<u32>,
    wait_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BodyFile {
    json_bytes: Option<u32>,
    json_depth: Option<u32>,
    seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConnectionsFile {
    most: Option<u32>,
    of_one_address: Option<u32>,
    streams: Option<u32>,
    header_bytes: Option<u32>,
    header_seconds: Option<u32>,
    idle_seconds: Option<u32>,
    stall_seconds: Option<u32>,
}

/// How much is too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Of one caller.
    pub caller: Share,
    /// Of all callers of a tenant together.
    pub tenant: Share,
    /// Requests without good credentials, of one address.
    pub strangers: Rate,
    /// Requests that are worked on at the same time.
    pub working: usize,
    /// Of those, of one tenant.
    pub working_of_one_tenant: usize,
    /// How long a request may wait until its turn comes.
    pub wait: Duration,
    /// Bodies.
    pub body: BodyLimits,
    /// Connections.
    pub connections: ConnectionLimits,
}

/// What somebody may have of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// How often they may ask.
    pub rate: Rate,
    /// Requests at the same time.
    pub requests: usize,
    /// Event streams, consoles, logs, uploads and waits at the same time.
    pub streams: usize,
}

/// How large a body may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Bytes of a JSON body.
    pub json_bytes: usize,
    /// How deep it may nest.
    pub json_depth: usize,
    /// All of a JSON body comes within this time, and something of any other.
    pub time: Duration,
}

/// What is put up with on connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// All of them.
    pub most: usize,
    /// Those from one address, or one /64 of IPv6.
    pub of_one_address: usize,
    /// Requests at the same time on one connection (HTTP/2).
    pub streams: u32,
    /// All headers of a request.
    pub header_bytes: u32,
    /// All headers come within this time.
    pub header: Duration,
    /// Nothing is asked for so long.
    pub idle: Duration,
    /// Nothing of an answer is taken for so long.
    pub stall: Duration,
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            caller: Share { rate: Rate::per_second(100, 200), requests: 64, streams: 64 },
            tenant: Share { rate: Rate::per_second(200, 400), requests: 128, streams: 256 },
            strangers: Rate::per_second(50, 500),
            working: 64,
            working_of_one_tenant: 8,
            wait: Duration::from_secs(5),
            body: BodyLimits::default(),
            connections: ConnectionLimits::default(),
        }
    }
}

impl Default for BodyLimits {
    fn default() -> BodyLimits {
        BodyLimits { json_bytes: 1 << 20, json_depth: 32, time: Duration::from_secs(30) }
    }
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits {
            most: 8192,
            of_one_address: 1024,
            streams: 128,
            header_bytes: 32 << 10,
            header: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            stall: Duration::from_secs(60),
        }
    }
}

// === impl LimitsFile ===

impl LimitsFile {
    /// What it means. What is wrong names its key.
    pub fn resolve(self) -> Result<LimitsConfig, String> {
        let usual = LimitsConfig::default();
        let working = many("server.working", self.server.working, usual.working)?;
        let of_one = usual.working_of_one_tenant.min(working);
        let body = usual.body;
        let found = LimitsConfig {
            caller: self.caller.resolve("caller", &usual.caller)?,
            tenant: self.tenant.resolve("tenant", &usual.tenant)?,
            strangers: rate("strangers", self.strangers.rate, self.strangers.burst, usual.strangers)?,
            working,
            working_of_one_tenant: many(
                "server.working_of_one_tenant",
                self.server.working_of_one_tenant,
                of_one,
            )?,
            wait: seconds("server.wait_seconds", self.server.wait_seconds, usual.wait)?,
            body: BodyLimits {
                json_bytes: many("body.json_bytes", self.body.json_bytes, body.json_bytes)?,
                json_depth: many("body.json_depth", self.body.json_depth, body.json_depth)?,
                time: seconds("body.seconds", self.body.seconds, body.time)?,
            },
            connections: self.connections.resolve(&usual.connections)?,
        };
        if found.body.json_depth > DEEPEST {
            return Err(format!("`limits.body.json_depth` must be at most {DEEPEST}"));
        }
        if found.working_of_one_tenant > found.working {
            return Err(
                "`limits.server.working_of_one_tenant` must be at most `limits.server.working`".into()
            );
        }
        Ok(found)
    }
}

/// Deeper than this no reader of JSON goes by itself.
const DEEPEST: usize = 100;
/// The least of what may be said of headers: less, and no token fits.
const LEAST_HEADERS: u32 = 8 << 10;

impl ShareFile {
    fn resolve(self, key: &str, usual: &Share) -> Result<Share, String> {
        Ok(Share {
            rate: rate(key, self.rate, self.burst, usual.rate)?,
            requests: many(&format!("{key}.requests"), self.requests, usual.requests)?,
            streams: many(&format!("{key}.streams"), self.streams, usual.streams)?,
        })
    }
}

impl ConnectionsFile {
    fn resolve(self, usual: &ConnectionLimits) -> Result<ConnectionLimits, String> {
        let header_bytes = self.header_bytes.unwrap_or(usual.header_bytes);
        if header_bytes < LEAST_HEADERS {
            return Err(format!("`limits.connections.header_bytes` must be at least {LEAST_HEADERS}"));
        }
        let key = |name: &str| format!("connections.{name}");
        Ok(ConnectionLimits {
            most: many(&key("most"), self.most, usual.most)?,
            of_one_address: many(&key("of_one_address"), self.of_one_address, usual.of_one_address)?,
            streams: u32::try_from(many(&key("streams"), self.streams, usual.streams as usize)?)
                .unwrap_or(u32::MAX),
            header_bytes,
            header: seconds(&key("header_seconds"), self.header_seconds, usual.header)?,
            idle: seconds(&key("idle_seconds"), self.idle_seconds, usual.idle)?,
            stall: seconds(&key("stall_seconds"), self.stall_seconds, usual.stall)?,
        })
    }
}

fn many(key: &str, given: Option<u32>, usual: usize) -> Result<usize, String> {
    match given {
        Some(0) => Err(format!("`limits.{key}` must be at least 1; leave it out for {usual}")),
        Some(given) => Ok(given as usize),
        None => Ok(usual),
    }
}

fn seconds(key: &str, given: Option<u32>, usual: Duration) -> Result<Duration, String> {
    let usual = usize::try_from(usual.as_secs()).unwrap_or(usize::MAX);
    Ok(Duration::from_secs(many(key, given, usual)? as u64))
}

fn rate(key: &str, rate: Option<u32>, burst: Option<u32>, usual: Rate) -> Result<Rate, String> {
    for (word, given) in [("rate", rate), ("burst", burst)] {
        if given == Some(0) {
            return Err(format!("`limits.{key}.{word}` must be at least 1 (requests)"));
        }
    }
    Ok(match (rate, burst) {
        (None, burst) => Rate { burst: burst.unwrap_or(usual.burst), ..usual },
        // As many seconds' worth at once as usual.
        (Some(rate), None) => Rate::per_second(rate, rate.saturating_mul(usual.seconds_at_once())),
        (Some(rate), Some(burst)) => Rate::per_second(rate, burst),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<LimitsConfig, String> {
        serde_json::from_str::<LimitsFile>(text).map_err(|error| error.to_string())?.resolve()
    }

    #[test]
    fn what_is_left_out_is_as_usual() {
        assert_eq!(read("{}").unwrap(), LimitsConfig::default());
        let found = read(r#"{"tenant": {"rate": 10}, "connections": {"idle_seconds": 5}}"#).unwrap();
        assert_eq!(found.tenant.rate, Rate::per_second(10, 20));
        assert_eq!(found.tenant.requests, LimitsConfig::default().tenant.requests);
        assert_eq!(found.connections.idle, Duration::from_secs(5));
        let found = read(r#"{"server": {"working": 4}}"#).unwrap();
        assert_eq!((found.working, found.working_of_one_tenant), (4, 4));
    }

    #[test]
    fn what_is_wrong_names_its_key() {
        for (text, says) in [
            (r#"{"caller": {"rate": 0}}"#, "`limits.caller.rate` must be at least 1"),
            (r#"{"server": {"wait_seconds": 0}}"#, "`limits.server.wait_seconds` must be at least 1"),
            (
                r#"{"server": {"working": 4, "working_of_one_tenant": 5}}"#,
                "must be at most `limits.server.working`",
            ),
            (r#"{"body": {"json_depth": 101}}"#, "`limits.body.json_depth` must be at most 100"),
            (r#"{"connections": {"header_bytes": 9}}"#, "`limits.connections.header_bytes` must be at least"),
            (r#"{"callers": {}}"#, "unknown field `callers`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
