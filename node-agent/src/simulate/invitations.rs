//! Joining: each node by an invitation of its own, as `rhyzome node invite` prints it.

use crate::enroll::{Joined, join};
use crate::names;
use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use std::path::Path;

/// How many join at once.
const AT_ONCE: usize = 32;

/// What one line says.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The node's name.
    pub name: String,
    /// `host:port`.
    pub server: String,
    token: String,
}

impl std::fmt::Debug for Invitation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Invitation").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Reads the lines; empty ones and comments are passed over. An error names the line, never what is in it.
pub fn read(text: &str) -> anyhow::Result<Vec<Invitation>> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    lines
        .map(|(at, line)| {
            parse(line).with_context(|| {
                format!("invitation, line {}: not a line that `rhyzome node invite` prints", at + 1)
            })
        })
        .collect()
}

/// `rhyzome-agent join --server HOST:PORT --name NAME --token TOKEN`, in whatever order.
fn parse(line: &str) -> Option<Invitation> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).map(|word| (*word).to_owned())
    };
    let name = after("--name").filter(|name| names::is_safe_id(name))?;
    Some(Invitation { name, server: after("--server")?, token: after("--token")? })
}

/// Joins with each of these that has not joined in its folder below `state` yet. `server`: where to dial instead.
pub async fn join_all(all: Vec<Invitation>, state: &Path, server: Option<&str>) -> anyhow::Result<()> {
    let joining = all.into_iter().map(|invitation| async move {
        let Invitation { name, server: told, token } = invitation;
        let joined = join(server.unwrap_or(&told), &token, &name, &state.join(&name)).await;
        (name, joined)
    });
    let mut joining = futures_util::stream::iter(joining).buffer_unordered(AT_ONCE);
    let mut count = 0_usize;
    while let Some((name, joined)) = joining.next().await {
        match joined {
            Ok(Joined::Now(_)) => count += 1,
            Ok(Joined::Already(_)) => {}
            Err(error) => bail!("{name} cannot join: {error}"),
        }
    }
    if count > 0 {
        tracing::info!(count, "nodes joined");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_printed() {
        let text = "# three\n\nrhyzome-agent join --server h:1 --name sim-1 --token rzj1.a.b\n\
                    rhyzome-agent join --token t --name sim-2 --server h:1\n";
        let all = read(text).unwrap();
        assert_eq!(all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["sim-1", "sim-2"]);
        assert_eq!((all[0].server.as_str(), all[0].token.as_str()), ("h:1", "rzj1.a.b"));
        assert!(!format!("{all:?}").contains("rzj1"));
    }

    #[test]
    fn what_is_no_invitation_is_named_and_not_shown() {
        for bad in ["x", "join --server h:1 --name ../a --token t", "join --server h:1 --name a --token"] {
            let error = format!("{:#}", read(&format!("\n{bad}\n")).unwrap_err());
            assert!(error.starts_with("invitation, line 2: ") && !error.contains(bad), "{error}");
        }
    }
}
