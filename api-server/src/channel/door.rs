//! Where sessions begin, whatever brings their messages: gRPC, or, in simulation, a wire in memory.
use super::caller::{Caller, status_of, who_shows};
use super::together::Desk;
use super::{ChannelContext, comeback, session, sessions};
use rhyzome_proto::v1::{AgentMessage, ReturnAnswer, ReturnMessage, ServerMessage};
use rustls::pki_types::CertificateDer;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Messages to one agent that may wait for the network; a slow agent then waits for itself alone.
const OUTGOING: usize = 32;

/// A message on its way to an agent. Boxed, because a queue has room for many from its first day: ten thousand idle
/// sessions would keep ten thousand times that room.
pub(super) type Said = Box<Result<ServerMessage, Status>>;

/// What a session says to its agent.
pub struct ToAgent(mpsc::Receiver<Said>);

impl Stream for ToAgent {
    type Item = Result<ServerMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|said| said.map(|said| *said))
    }
}

/// What a node hears that comes back.
pub type ToReturning = ReceiverStream<Result<ReturnAnswer, Status>>;

/// Begins sessions. Cheap to clone.
#[derive(Clone)]
pub struct SessionDoor {
    context: Arc<ChannelContext>,
    db_epoch: i64,
    desk: Arc<Desk>,
    /// Ends what was begun here, in simulation.
    ended: CancellationToken,
}

impl SessionDoor {
    /// For one server. Nothing is heard of what is new until [`SessionDoor::hear`] runs.
    pub async fn open(context: Arc<ChannelContext>) -> Result<SessionDoor, Status> {
        let db_epoch = context.store.db_epoch().await.map_err(|error| status_of(&error))?;
        let ended = CancellationToken::new();
        let desk = Arc::new(Desk::open(&context, db_epoch, &ended));
        Ok(SessionDoor { context, db_epoch, desk, ended })
    }

    /// Hears the bells of the store for all sessions, for ever.
    pub async fn hear(&self) {
        sessions::hear(self.context.clone()).await;
    }

    /// A session of the node that shows this certificate, of which whoever brings the messages has proven that the
    /// cluster made it and that the caller has its key. `from`: where it is, for the log.
    pub async fn begin_for(
        &self,
        certificate: &CertificateDer<'_>,
        from: &str,
        incoming: impl Stream<Item = Result<AgentMessage, Status>> + Unpin + Send + 'static,
    ) -> Result<ToAgent, Status> {
        let caller = who_shows(&self.context, certificate, from).await?;
        Ok(self.begin(caller, incoming))
    }

    /// Ends all that was begun here, wherever it is, as the end of the process does: for a simulation of that.
    pub fn end_as_a_process_does(&self) {
        self.ended.cancel();
    }

    /// The way back in for a node whose certificate has run out.
    pub fn come_back(
        &self,
        from: String,
        steps: impl Stream<Item = Result<ReturnMessage, Status>> + Unpin + Send + 'static,
    ) -> ToReturning {
        // Two answers are all there are.
        let (answers, told) = mpsc::channel(2);
        let coming = comeback::run(self.context.clone(), from, steps, answers);
        tokio::spawn(self.ended.clone().run_until_cancelled_owned(coming));
        ReceiverStream::new(told)
    }

    pub(super) fn begin(
        &self,
        caller: Caller,
        incoming: impl Stream<Item = Result<AgentMessage, Status>> + Unpin + Send + 'static,
    ) -> ToAgent {
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let session =
            session::run(self.context.clone(), self.desk.clone(), self.db_epoch, caller, incoming, outgoing);
        tokio::spawn(self.ended.clone().run_until_cancelled_owned(session));
        ToAgent(messages)
    }
}
