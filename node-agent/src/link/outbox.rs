//! What waits to be told to the server: the newest report of each object, the newest node status, and what this node
//! shows and trusts.
//!
//! A newer report of an object replaces an older one that was not sent yet, so that the outbox is bounded by
//! the number of objects, nobody who reports ever waits, and a slow server gets the truth instead of history.
use rhyzome_proto::v1::{AgentMessage, Credentials, Findings, NodeStatus, Report, agent_message::Message};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    bell: Notify,
}

#[derive(Default)]
struct Waiting {
    credentials: Option<Credentials>,
    node: Option<NodeStatus>,
    findings: Option<Findings>,
    reports: BTreeMap<String, Report>,
}

impl Outbox {
    pub(crate) fn report(&self, report: Report) {
        self.lock().reports.insert(report.object_id.clone(), report);
        self.bell.notify_one();
    }

    pub(crate) fn node_status(&self, status: NodeStatus) {
        self.lock().node = Some(status);
        self.bell.notify_one();
    }

    pub(crate) fn credentials(&self, credentials: Credentials) {
        self.lock().credentials = Some(credentials);
        self.bell.notify_one();
    }

    pub(crate) fn findings(&self, findings: Findings) {
        self.lock().findings = Some(findings);
        self.bell.notify_one();
    }

    /// The next message; waits until there is one. Dropping the future loses nothing.
    pub(crate) async fn next(&self) -> AgentMessage {
        loop {
            if let Some(message) = self.take() {
                return AgentMessage { message: Some(message) };
            }
            self.bell.notified().await;
        }
    }

    fn take(&self) -> Option<Message> {
        let mut waiting = self.lock();
        if let Some(credentials) = waiting.credentials.take() {
            return Some(Message::Credentials(credentials));
        }
        if let Some(status) = waiting.node.take() {
            return Some(Message::Node(status));
        }
        if let Some((_, report)) = waiting.reports.pop_first() {
            return Some(Message::Report(report));
        }
        waiting.findings.take().map(Message::Findings)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_report_of_each_object_is_what_is_sent() {
        let outbox = Outbox::default();
        for (object, generation) in [("inst_b", 1), ("inst_a", 1), ("inst_b", 2)] {
            outbox.report(Report { object_id: object.into(), generation, ..Report::default() });
        }
        outbox.node_status(NodeStatus::default());
        let mut sent = vec![];
        for _ in 0..3 {
            sent.push(match outbox.next().await.message {
                Some(Message::Report(report)) => format!("{} {}", report.object_id, report.generation),
                _ => "node".into(),
            });
        }
        assert_eq!(sent, ["node", "inst_a 1", "inst_b 2"]);
        assert!(outbox.take().is_none());
    }
}
