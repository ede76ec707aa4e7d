//! Streams that nodes lend: asked for over the session, brought by a call of the agent's own.
use super::caller::Caller;
use super::lent::{Lent, Purpose, WAITING, toward_lender, toward_user};
use super::sessions::Sessions;
use bytes::Bytes;
use rhyzome_pki::{ServerCertificate, random_hex};
use rhyzome_proto::v1::{OpenStream, StreamFrame};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

/// How long an agent may take to bring a stream.
const BRING: Duration = Duration::from_secs(5);

/// Why no stream was lent.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The node has no session at this server.
    #[error("the node is not connected")]
    NotConnected,
    /// The agent did not bring it.
    #[error("the node did not answer within {} seconds", BRING.as_secs())]
    Silent,
    /// The agent says why not.
    #[error("the node cannot lend it: {0}")]
    Refused(String),
    /// The system gave no random numbers.
    #[error("no stream could be named")]
    Unnamed,
    /// Another server holds the node's session, and the stream cannot be had from there: why.
    #[error("{0}")]
    Elsewhere(String),
    /// It is not known now which server holds the node's session.
    #[error("{0}")]
    Unknown(String),
}

/// Where streams of the nodes are asked for whose sessions this server holds. Cheap to clone.
#[derive(Clone, Default)]
pub struct Streams {
    sessions: Sessions,
    wanted: Arc<Mutex<HashMap<String, Wanted>>>,
    counts: Arc<Counts>,
}

/// For whoever watches.
#[derive(Default)]
struct Counts {
    orders: AtomicU64,
    reports: AtomicU64,
    /// What agents are shown.
    shown: OnceLock<Arc<ServerCertificate>>,
}

struct Wanted {
    node: String,
    purpose: Purpose,
    bring: oneshot::Sender<Result<Lent, String>>,
}

/// Takes a stream out of the list when nobody waits for it any more.
struct Waiting<'a>(&'a Streams, String);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Streams {
    /// For one server.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sessions, and streams that are asked for and not brought yet.
    pub fn counted(&self) -> (usize, usize) {
        (self.sessions.count(), self.lock().len())
    }

    /// Orders sent, and reports received, since the start.
    pub fn passed(&self) -> (u64, u64) {
        (self.counts.orders.load(Ordering::Relaxed), self.counts.reports.load(Ordering::Relaxed))
    }

    /// When the certificates end: the first one of those of the agents that are here, and what agents are shown.
    pub fn certificates_end(&self) -> (Option<SystemTime>, Option<SystemTime>) {
        let shown = self.counts.shown.get().and_then(|shown| shown.ends());
        (self.sessions.certificates_end(), shown)
    }

    pub(super) fn ordered(&self) {
        self.counts.orders.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reported(&self) {
        self.counts.reports.fetch_add(1, Ordering::Relaxed);
    }

    /// That is what agents are shown. Once is enough: a later one is ignored.
    pub(super) fn shows(&self, shown: Arc<ServerCertificate>) {
        let _ = self.counts.shown.set(shown);
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream of an instance that this node holds.
    pub async fn open(&self, node: &str, object: &str, purpose: Purpose) -> Result<Lent, StreamError> {
        let stream_id = random_hex().map_err(|_| StreamError::Unnamed)?;
        let (bring, brought) = oneshot::channel();
        self.lock().insert(stream_id.clone(), Wanted { node: node.to_owned(), purpose, bring });
        let waiting = Waiting(self, stream_id);
        let asked = OpenStream { stream_id: waiting.1.clone(), ..purpose.of(object) };
        if !self.sessions.open(node, asked) {
            return Err(StreamError::NotConnected);
        }
        match tokio::time::timeout(BRING, brought).await {
            Ok(Ok(Ok(lent))) => Ok(lent),
            Ok(Ok(Err(reason))) => Err(StreamError::Refused(reason)),
            Ok(Err(_)) | Err(_) => Err(StreamError::Silent),
        }
    }

    /// The agent's call: its frames in, the frames for it out.
    pub(super) fn attach(
        &self,
        caller: Caller,
        frames: Streaming<StreamFrame>,
    ) -> mpsc::Receiver<Result<StreamFrame, Status>> {
        let (outgoing, for_agent) = mpsc::channel(1);
        tokio::spawn(join(self.clone(), caller, frames, outgoing));
        for_agent
    }

    /// Whoever waits for this stream of this node, once.
    fn claim(&self, caller: &Caller, stream_id: &str) -> Option<Wanted> {
        let mut wanted = self.lock();
        // The id of another node's stream is worth nothing, and stays that node's.
        wanted.get(stream_id).filter(|wanted| wanted.node == caller.node)?;
        wanted.remove(stream_id)
    }
}

async fn join(
    streams: Streams,
    caller: Caller,
    mut frames: Streaming<StreamFrame>,
    outgoing: mpsc::Sender<Result<StreamFrame, Status>>,
) {
    let Ok(Ok(Some(first))) = tokio::time::timeout(BRING, frames.message()).await else { return };
    let Some(wanted) = streams.claim(&caller, &first.stream_id) else {
        tracing::info!(node = caller.node, "a stream that nobody has asked of this node was refused");
        // Nobody reads the answer if this fails.
        let _ = outgoing.send(Err(Status::not_found("nobody waits for this stream"))).await;
        return;
    };
    if !first.error.is_empty() {
        // Whoever waited has gone if this fails.
        let _ = wanted.bring.send(Err(first.error));
        return;
    }
    let (to_agent, mut from_user) = mpsc::channel::<Bytes>(WAITING);
    let (to_user, from_agent) = mpsc::channel(WAITING);
    if wanted.bring.send(Ok((to_agent, from_agent))).is_err() {
        return;
    }
    tokio::select! {
        () = toward_user(&mut frames, &to_user, wanted.purpose, "the connection to the node was lost") => {}
        () = toward_lender(&mut from_user, &outgoing) => {}
        () = to_user.closed() => {}
    }
}
