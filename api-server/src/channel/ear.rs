//! What an agent says in a session: one message after the other, or as many as are there already.
use super::flood::Allowance;
use super::session::FromAgent;
use futures_util::FutureExt as _;
use rhyzome_proto::v1::agent_message::Message;
use rhyzome_proto::v1::{AgentMessage, Report};
use std::time::Duration;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

/// So many reports are taken together at most: as many as the store is told at once.
const TOGETHER: usize = 64;

/// Why nothing more is heard.
#[derive(Debug)]
pub(super) enum Deaf {
    /// The agent is gone.
    Gone,
    /// Nothing came for too long.
    Silent,
    /// What came is no message, or too large.
    Nonsense(String),
    /// Too much came.
    Flooded,
}

/// Hears one agent.
pub(super) struct Ear<S> {
    incoming: S,
    patience: Duration,
    began: Instant,
    allowance: Allowance,
    /// What came and was not taken yet.
    ahead: Option<Said>,
}

type Said = Option<Result<AgentMessage, Status>>;

impl<S: FromAgent> Ear<S> {
    /// An agent that says nothing for so long is not there.
    pub(super) fn new(incoming: S, patience: Duration) -> Self {
        let (began, allowance) = (Instant::now(), Allowance::new());
        Ear { incoming, patience, began, allowance, ahead: None }
    }

    /// The next message. `None`: one that is not known here.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, Deaf> {
        let said = match self.ahead.take() {
            Some(said) => said,
            None => {
                let next = tokio::time::timeout(self.patience, self.incoming.next()).await;
                next.map_err(|_| Deaf::Silent)?
            }
        };
        let message = match said {
            Some(Ok(message)) => message.message,
            // Not the connection has broken off, but what came over it makes no sense.
            Some(Err(status))
                if matches!(status.code(), Code::Internal | Code::OutOfRange | Code::Unimplemented) =>
            {
                return Err(Deaf::Nonsense(status.message().replace('\n', " ")));
            }
            None | Some(Err(_)) => return Err(Deaf::Gone),
        };
        if self.allowance.take(self.began.elapsed()) { Ok(message) } else { Err(Deaf::Flooded) }
    }

    /// This report, and those on other objects that have come right behind it.
    pub(super) async fn with_more(&mut self, first: Report) -> Result<Vec<Report>, Deaf> {
        let mut all = vec![first];
        while all.len() < TOGETHER {
            if self.ahead.is_none() {
                self.ahead = self.incoming.next().now_or_never();
            }
            let Some(Some(Ok(AgentMessage { message: Some(Message::Report(next)) }))) = &self.ahead else {
                break;
            };
            if all.iter().any(|other| other.object_id == next.object_id) {
                break;
            }
            if let Some(Message::Report(next)) = self.next().await? {
                all.push(next);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rhyzome_proto::v1::Heartbeat;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    fn report(object: &str) -> Message {
        Message::Report(Report { object_id: object.into(), ..Report::default() })
    }

    #[tokio::test]
    async fn what_came_already_is_taken_together_and_in_order() {
        let (says, said) = mpsc::channel(16);
        let mut ear = Ear::new(ReceiverStream::new(said), Duration::from_secs(60));
        let beat = || Message::Heartbeat(Heartbeat::default());
        for message in [report("a"), report("b"), report("a"), beat(), report("c")] {
            says.send(Ok(AgentMessage { message: Some(message) })).await.unwrap();
        }
        let mut heard = Vec::new();
        for _ in 0..4 {
            heard.push(match ear.next().await.unwrap() {
                Some(Message::Report(first)) => {
                    let all = ear.with_more(first).await.unwrap();
                    all.into_iter().map(|report| report.object_id).collect::<String>()
                }
                _ => "beat".to_owned(),
            });
        }
        assert_eq!(heard, ["ab", "a", "beat", "c"]);
        drop(says);
        assert!(matches!(ear.next().await, Err(Deaf::Gone)));
    }
}
