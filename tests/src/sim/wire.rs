//! The wire between an agent's link and a server's door: messages in order, each after a while, some of them twice; until
//! it is cut, and the two ends hear of that at different times, or never.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rhyzome_agent::identity::LoadedIdentity;
use rhyzome_agent::link::{Begin, FromServer, LinkError, Reach, Reached, ToReturning};
use rhyzome_api::channel::{SessionDoor, ToAgent};
use rhyzome_proto::v1::{AgentMessage, ReturnMessage, ServerMessage, agent_message, server_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::house::{House, Switch};

/// Messages that may wait in each direction.
const WAITING: usize = 32;
/// A message takes so many milliseconds at most, but for a few.
const DELAY_MS: u64 = 100;
/// What was under way when a connection was lost may arrive until so many milliseconds later.
const LATE_MS: u64 = 40_000;
/// How long an agent dials in vain.
const IN_VAIN: Duration = Duration::from_secs(10);

/// The way of one agent to any server.
pub(super) struct Wire {
    pub(super) house: Arc<House>,
    pub(super) name: String,
    pub(super) cluster_id: String,
    pub(super) line: Arc<Line>,
}

/// What is wrong with it.
pub(super) struct Line {
    /// Nothing gets through, and nobody is told.
    pub(super) dark: Switch,
    /// The connection that there is.
    ends: Mutex<Ends>,
}

/// When the ends of a connection hear that it is lost.
#[derive(Clone, Default)]
struct Ends {
    agent: CancellationToken,
    server: CancellationToken,
}

impl Line {
    pub(super) fn new() -> Line {
        Line { dark: Switch::default(), ends: Mutex::default() }
    }

    /// The agent hears at once that the connection is lost; the server later, and until then of what was under way.
    pub(super) fn cut(&self, house: &House) {
        let ends = self.ends.lock().unwrap().clone();
        ends.agent.cancel();
        later(ends.server, house.below(LATE_MS));
    }
}

impl Line {
    /// The server hears at once that the connection is lost; the agent does not, and gets nothing through for so long.
    pub(super) fn cut_off(&self, lasts: Duration) {
        self.ends.lock().unwrap().server.cancel();
        self.dark.set(true);
        let dark = self.dark.clone();
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            dark.set(false);
        });
    }
}

fn later(end: CancellationToken, millis: u64) {
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        end.cancel();
    });
}

impl Wire {
    /// A server that answers, if there is one.
    async fn door(&self) -> Result<(SessionDoor, Switch), LinkError> {
        self.house.takes(DELAY_MS).await;
        if self.line.dark.is_on() {
            tokio::time::sleep(IN_VAIN).await;
            return Err(LinkError::Connection("no answer".into()));
        }
        let open: Vec<_> = self.house.doors.lock().unwrap().iter().flatten().cloned().collect();
        if open.is_empty() {
            return Err(LinkError::Connection("refused".into()));
        }
        let (door, still) = open[self.house.pick(open.len())].clone();
        if still.is_on() {
            tokio::time::sleep(IN_VAIN).await;
            return Err(LinkError::Connection("connected, and no answer".into()));
        }
        Ok((door, still))
    }

    /// A new connection.
    fn way(&self, still: Switch) -> Way {
        let (house, name, line) = (self.house.clone(), self.name.clone(), self.line.clone());
        let ends = Ends::default();
        *line.ends.lock().unwrap() = ends.clone();
        Way { house, name, line, still, ends }
    }
}

impl Reach for Wire {
    fn come_back(
        &self,
        _identity: Arc<LoadedIdentity>,
        steps: mpsc::Receiver<ReturnMessage>,
    ) -> BoxFuture<'_, Result<ToReturning, LinkError>> {
        Box::pin(async move {
            let (door, still) = self.door().await?;
            self.house.fault("a certificate has run out", &self.name);
            let way = self.way(still);
            let ((up, received), (down, heard)) = (mpsc::channel(2), mpsc::channel(2));
            let answers = door.come_back(self.name.clone(), ReceiverStream::new(received));
            tokio::spawn(way.clone().carry(ReceiverStream::new(steps).map(Ok), up));
            tokio::spawn(way.carry(answers, down));
            Ok(Box::pin(ReceiverStream::new(heard)) as ToReturning)
        })
    }

    fn reach(&self, identity: Arc<LoadedIdentity>) -> BoxFuture<'_, Result<Reached, LinkError>> {
        Box::pin(async move {
            let (door, still) = self.door().await?;
            let way = self.way(still);
            let begin: Begin = Box::new(move |messages| Box::pin(join(way, door, identity, messages)));
            Ok(Reached { cluster_id: self.cluster_id.clone(), begin })
        })
    }
}

async fn join(
    way: Way,
    door: SessionDoor,
    identity: Arc<LoadedIdentity>,
    messages: mpsc::Receiver<AgentMessage>,
) -> Result<FromServer, LinkError> {
    let (up, received) = mpsc::channel(WAITING);
    let certificate = identity.identity.leaf();
    let to_agent = door.begin_for(certificate, &way.name, ReceiverStream::new(received)).await;
    let to_agent = to_agent.map_err(|status| LinkError::Refused(status.message().to_owned()))?;
    let (down, heard) = mpsc::channel(WAITING);
    tokio::spawn(way.clone().up(messages, up));
    tokio::spawn(way.down(to_agent, down));
    Ok(Box::pin(ReceiverStream::new(heard)))
}

/// One connection.
#[derive(Clone)]
struct Way {
    house: Arc<House>,
    name: String,
    line: Arc<Line>,
    /// Whether the server stands still.
    still: Switch,
    ends: Ends,
}

impl Way {
    /// What each message takes; longer, while the line is dark or the server stands still.
    async fn pass(&self) {
        self.house.takes(DELAY_MS).await;
        self.line.dark.is(false).await;
        self.still.is(false).await;
    }

    /// One direction of a call that comes to its end, unless it is cut.
    async fn carry<T>(self, mut from: impl Stream<Item = T> + Unpin, to: mpsc::Sender<T>) {
        let carry = async {
            while let Some(message) = from.next().await {
                self.pass().await;
                if to.send(message).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = self.ends.agent.cancelled() => {}
            () = carry => {}
        }
    }

    async fn up(
        self,
        mut messages: mpsc::Receiver<AgentMessage>,
        up: mpsc::Sender<Result<AgentMessage, Status>>,
    ) {
        let carry = async {
            while let Some(message) = messages.recv().await {
                self.pass().await;
                for _ in 0..self.times(self.told(&message), "a report comes twice") {
                    if up.send(Ok(message.clone())).await.is_err() {
                        return;
                    }
                }
            }
            // The agent is gone; the server hears of it some time.
            let late = self.house.below(LATE_MS);
            tokio::time::sleep(Duration::from_millis(late)).await;
        };
        tokio::select! {
            biased;
            () = self.ends.server.cancelled() => {}
            () = carry => {}
        }
        self.ends.server.cancel();
    }

    async fn down(self, mut to_agent: ToAgent, down: mpsc::Sender<Result<ServerMessage, Status>>) {
        let mut down = Some(down);
        let carry = async {
            loop {
                let message = tokio::select! {
                    biased;
                    () = self.ends.agent.cancelled(), if down.is_some() => {
                        // The agent hears the end; the server goes on talking to nobody.
                        down = None;
                        continue;
                    }
                    message = to_agent.next() => message,
                };
                let Some(message) = message else { return };
                self.pass().await;
                let ordered = message.as_ref().ok().and_then(|message| self.ordered(message));
                for _ in 0..self.times(ordered, "an order comes twice") {
                    if let Some(down) = down.as_ref().filter(|_| !self.ends.agent.is_cancelled()) {
                        // An agent that is gone hears nothing; the server learns that later.
                        let _ = down.send(message.clone()).await;
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = self.ends.server.cancelled() => {}
            () = carry => {}
        }
        self.ends.agent.cancel();
    }

    /// How often a message arrives: one of which something is said may come twice.
    fn times(&self, said: Option<String>, twice: &'static str) -> usize {
        let Some(said) = said else { return 1 };
        self.house.note(said);
        if !self.house.fails(5) {
            return 1;
        }
        self.house.fault(twice, &self.name);
        2
    }

    fn told(&self, message: &AgentMessage) -> Option<String> {
        let Some(agent_message::Message::Report(report)) = &message.message else { return None };
        let state = report.state().as_str_name();
        Some(format!("{} says {} {} {state}", self.name, report.object_id, report.generation))
    }

    fn ordered(&self, message: &ServerMessage) -> Option<String> {
        let Some(server_message::Message::Order(order)) = &message.message else { return None };
        let what = if order.remove { "not to hold" } else { "to hold" };
        Some(format!("{} is {what} {} {}", self.name, order.object_id, order.generation))
    }
}
