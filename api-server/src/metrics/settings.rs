//! The configuration's room `metrics`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::kernel::secret::Plain;

/// As the file has it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsFile {
    listen: Option<String>,
    token_file: Option<PathBuf>,
}

/// Where metrics are served, and to whom.
#[derive(Clone, Debug)]
pub struct MetricsConfig {
    /// Where.
    pub listen: SocketAddr,
    /// Whoever asks shows this as a bearer token; without it everybody may, from this machine.
    pub token: Option<Plain>,
}

/// A token that is shorter can be guessed.
const SHORTEST: usize = 16;

impl MetricsFile {
    /// What it means; nothing: they are not served. What is wrong names its key.
    pub fn resolve(self) -> Result<Option<MetricsConfig>, String> {
        let Some(listen) = self.listen else {
            return match self.token_file {
                None => Ok(None),
                Some(_) => Err("`metrics.token_file` needs `metrics.listen` beside it".into()),
            };
        };
        let listen: SocketAddr = listen.parse().map_err(|_| {
            format!("`metrics.listen`: `{listen}` is not ADDRESS:PORT, such as 127.0.0.1:8442")
        })?;
        let token = self.token_file.map(token).transpose()?;
        if token.is_none() && !listen.ip().is_loopback() {
            return Err(format!(
                "`metrics.listen`: {listen} can be reached from elsewhere, so `metrics.token_file` must name a file with \
                 the token that whoever asks shows"
            ));
        }
        Ok(Some(MetricsConfig { listen, token }))
    }
}

fn token(path: PathBuf) -> Result<Plain, String> {
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("`metrics.token_file`: {} cannot be read: {error}", path.display()))?;
    let token = text.trim();
    if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "`metrics.token_file`: {} must hold one token of at least {SHORTEST} characters of ASCII without blanks",
            path.display()
        ));
    }
    Ok(Plain::new(token.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(listen: Option<&str>, token: Option<&str>) -> Result<Option<MetricsConfig>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token_file = token.map(|token| {
            std::fs::write(&path, token).unwrap();
            path
        });
        MetricsFile { listen: listen.map(str::to_owned), token_file }.resolve()
    }

    #[test]
    fn they_are_off_and_never_open_to_strangers() {
        assert!(resolved(None, None).unwrap().is_none());
        assert!(resolved(Some("127.0.0.1:0"), None).unwrap().unwrap().token.is_none());
        assert!(resolved(Some("10.0.0.1:1"), None).unwrap_err().contains("`metrics.token_file` must name"));
        assert!(resolved(Some("here"), None).unwrap_err().contains("is not ADDRESS:PORT"));
        assert!(resolved(None, Some("x")).unwrap_err().contains("needs `metrics.listen`"));
        assert!(resolved(Some("10.0.0.1:1"), Some("short")).unwrap_err().contains("at least 16"));
        let kept = resolved(Some("10.0.0.1:1"), Some("a-token-that-is-long\n")).unwrap().unwrap();
        assert_eq!(kept.token.unwrap().reveal(), "a-token-that-is-long");
    }
}
