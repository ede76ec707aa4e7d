//! Joining: how a machine becomes a node, once.
use crate::identity::{IdentityError, IdentityFolder, NodeRecord};
use crate::link::dial;
use rhyzome_pki::{PkiError, joining_client_config};
use rhyzome_proto::v1::enrollment_client::EnrollmentClient;
use rhyzome_proto::v1::{JoinRequest, JoinResponse};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

const ANSWER: Duration = Duration::from_secs(30);

/// What an operator hands over: `rzj1.SECRET.ROOT`, the secret and the SHA-256 of the cluster's root.
#[derive(Clone)]
pub struct JoinToken {
    secret: String,
    root_sha256: String,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken(rzj1. .. .{})", self.root_sha256)
    }
}

/// Why a machine did not become a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Not a token at all.
    #[error(
        "the join token is not of the form rzj1.SECRET.ROOT; copy the whole line that `rhyzome node invite` printed"
    )]
    Token,
    /// The folder is a node's already, and not the one that was meant.
    #[error("this state folder already belongs to node {} of cluster {}; use another folder, or empty this one to give that node up", .0.node_name, .0.cluster_id)]
    OtherNode(Box<NodeRecord>),
    /// No connection.
    #[error("{0}")]
    Connection(String),
    /// The server said no.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// What the server answered does not fit.
    #[error("the server's answer cannot be used: {0}")]
    Answer(String),
    /// The identity's files cannot be written or read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<PkiError> for JoinError {
    fn from(error: PkiError) -> Self {
        Self::Identity(error.into())
    }
}

/// How it ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// The machine is a node now.
    Now(NodeRecord),
    /// It was this node before; nothing was asked of the server, and the token was not used.
    Already(NodeRecord),
}

impl FromStr for JoinToken {
    type Err = JoinError;

    fn from_str(line: &str) -> Result<Self, JoinError> {
        let mut parts = line.trim().split('.');
        let (Some("rzj1"), Some(secret), Some(root), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoinError::Token);
        };
        let is_secret =
            secret.len() >= 16 && secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let is_root = root.len() == 64 && root.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_secret || !is_root {
            return Err(JoinError::Token);
        }
        Ok(Self { secret: secret.to_owned(), root_sha256: root.to_ascii_lowercase() })
    }
}

/// Joins the cluster at `server` (`host:port`; `https://` before it is fine; several with commas between) as `node_name`, and keeps the identity in `state_dir`.
pub async fn join(
    server: &str,
    token_line: &str,
    node_name: &str,
    state_dir: &Path,
) -> Result<Joined, JoinError> {
    let token: JoinToken = token_line.parse()?;
    let folder = IdentityFolder::new(state_dir);
    if let Some(record) = folder.record()? {
        // The authority may have been exchanged for another since.
        let same = record.node_name == node_name
            && (record.root_sha256 == token.root_sha256 || folder.trusts(&token.root_sha256)?);
        return if same { Ok(Joined::Already(record)) } else { Err(JoinError::OtherNode(Box::new(record))) };
    }
    let request = JoinRequest {
        token: token.secret.clone(),
        node_name: node_name.to_owned(),
        csr_pem: folder.key()?.csr_pem()?,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let answer = ask(server, &token, request).await?;
    check(&answer, &token)?;
    folder.keep_certificate(&answer.certificate_chain_pem, &answer.trust_pem)?;
    let record = NodeRecord {
        node_id: answer.node_id,
        node_name: node_name.to_owned(),
        cluster_id: answer.cluster_id,
        root_sha256: token.root_sha256,
        server: server.to_owned(),
    };
    folder.keep_record(&record)?;
    Ok(Joined::Now(record))
}

async fn ask(server: &str, token: &JoinToken, request: JoinRequest) -> Result<JoinResponse, JoinError> {
    let tls = joining_client_config(&token.root_sha256)?;
    let channel = dial::dial(server, 0, tls).await.map_err(JoinError::Connection)?;
    let mut client = EnrollmentClient::new(channel);
    match tokio::time::timeout(ANSWER, client.join(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(JoinError::Refused(dial::refusal(&status))),
        Err(_) => Err(JoinError::Connection(format!("{server} does not answer"))),
    }
}

fn check(answer: &JoinResponse, token: &JoinToken) -> Result<(), JoinError> {
    if !rhyzome_pki::fingerprints(&answer.trust_pem)?.contains(&token.root_sha256) {
        return Err(JoinError::Answer("the pinned root is not among the roots it wants trusted".into()));
    }
    if answer.node_id.is_empty() || answer.cluster_id.is_empty() {
        return Err(JoinError::Answer("it names no node or no cluster".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_three_parts_and_never_printed() {
        let root = "ab".repeat(32);
        let token: JoinToken = format!(" rzj1.{}.{root}\n", "s".repeat(43)).parse().unwrap();
        assert_eq!(token.root_sha256, root);
        assert!(!format!("{token:?}").contains("sss"));
        for bad in [
            "",
            "rzj1",
            "rzj2.ssssssssssssssss.x",
            &format!("rzj1.short.{root}"),
            "rzj1.ssssssssssssssss.abc",
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}
