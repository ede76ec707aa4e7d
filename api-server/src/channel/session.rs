//! One session of one node: orders out, reports in, side by side, so that neither ever waits for the other.
//!
//! A server holds thousands that wait. Whatever is long only while something happens is boxed, so that a session that
//! waits keeps room for its waiting alone.
use super::ChannelContext;
use super::caller::Caller;
use super::control::VERSION;
use super::credentials::Known;
use super::door::Said;
use super::ear::{Deaf, Ear};
use super::findings;
use super::report::{self, insist, signed, unsigned};
use super::sessions::{Place, superseded};
use super::together::{Desk, Opened, Opening};
use crate::kernel::Timestamp;
use crate::store::{AssignmentRow, Introduction, Look, SessionStanding};
use rhyzome_pki::sha256_hex;
use rhyzome_proto::v1::{
    AgentMessage, CaughtUp, Credentials, Goodbye, Heartbeat, Hello, OpenStream, Order, RenewResponse, Report,
    ServerMessage, Welcome, agent_message, server_message,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// For the agent's Hello.
const FIRST: Duration = Duration::from_secs(10);
/// For an agent that does not read to take our Goodbye.
const LAST: Duration = Duration::from_secs(1);
/// Orders that are read from the store at once.
const PAGE: i64 = 64;
/// After a refusal that only an operator can lift.
const COME_BACK_LATE_MS: u32 = 15_000;

type Outgoing = mpsc::Sender<Said>;

/// What an agent says in a session.
pub(super) trait FromAgent: Stream<Item = Result<AgentMessage, Status>> + Unpin + Send {}
impl<S: Stream<Item = Result<AgentMessage, Status>> + Unpin + Send> FromAgent for S {}

/// How a session ends: with a word to the agent, or without, as it is gone.
enum End {
    Say(Goodbye),
    Gone,
}

fn goodbye(reason: impl Into<String>, reconnect_after_ms: u32) -> End {
    End::Say(Goodbye { reason: reason.into(), reconnect_after_ms })
}

/// Whoever says that all orders were sent has read all of them: an agent begins nothing by itself before.
fn unreadable() -> End {
    goodbye("the orders cannot be read", COME_BACK_LATE_MS)
}

struct Session {
    context: Arc<ChannelContext>,
    caller: Caller,
    number: i64,
    db_epoch: i64,
    outgoing: Outgoing,
    known: Known,
    desk: Arc<Desk>,
}

/// What the agent was told until now.
struct Told {
    /// Orders up to this number.
    sent: i64,
    /// That these were all.
    caught_up: bool,
    /// It was asked before what is new.
    has_looked: bool,
    /// What operators decided.
    decided: Vec<(String, String)>,
}

/// Runs a session to its end.
pub(super) async fn run(
    context: Arc<ChannelContext>,
    desk: Arc<Desk>,
    db_epoch: i64,
    caller: Caller,
    mut incoming: impl FromAgent,
    outgoing: Outgoing,
) {
    let Some(hello) = first(&mut incoming).await else {
        return farewell(&outgoing, goodbye("the first message must be Hello, within 10 s", 1_000)).await;
    };
    let asked = context.store.env().uptime();
    let opened = tokio::select! {
        biased;
        opened = Box::pin(open(&desk, &caller, &hello)) => opened,
        // An agent that has gone while the database was away must not take the place of its next session.
        () = outgoing.closed() => return,
    };
    let number = match opened {
        Ok(number) => number,
        Err(end) => return farewell(&outgoing, end).await,
    };
    let known = Known::of(&caller);
    let session = Session { context, caller, number, db_epoch, outgoing, known, desk };
    let end = match session.context.streams.sessions().enter(&session.caller.node, number, asked) {
        Some(place) => Box::pin(session.hold(place, hello, incoming)).await,
        None => End::Say(superseded()),
    };
    let reason = match &end {
        End::Say(goodbye) => goodbye.reason.clone(),
        End::Gone => "the connection ended".to_owned(),
    };
    tracing::info!(node = session.caller.node, session = number, reason, "session ended");
    farewell(&session.outgoing, end).await;
    drop(session.outgoing);
    let (store, node) = (&session.context.store, &session.caller.node);
    Box::pin(insist("end of session", || store.close_session(node, number))).await;
}

/// Begins a session in the store, if this agent can be the node. Why it cannot is kept, so that operators see it.
async fn open(desk: &Desk, caller: &Caller, hello: &Hello) -> Result<i64, End> {
    let who = Introduction {
        machine: report::clean(&hello.machine_id),
        incarnation: report::clean(&hello.incarnation),
        db_epoch: signed(hello.db_epoch),
        cursor: signed(hello.cursor),
    };
    let opening = Opening { node: caller.node.clone(), who, known: report::agent(hello) };
    match desk.begin(opening).await {
        Some(Opened::As(number)) => Ok(number),
        Some(Opened::Refused(why)) => {
            tracing::warn!(node = caller.node, refused = why, "an agent is refused as this node");
            Err(goodbye(why, COME_BACK_LATE_MS))
        }
        Some(Opened::NoNode) | None => Err(goodbye("the session could not be opened", COME_BACK_LATE_MS)),
    }
}

/// A session that may not go on.
fn end_of(standing: SessionStanding) -> Option<End> {
    match standing {
        SessionStanding::Newest => None,
        SessionStanding::Superseded => Some(End::Say(superseded())),
        SessionStanding::Buried => {
            Some(goodbye("this server was taken for dead, and the node for offline: come again", 200))
        }
        SessionStanding::Revoked => Some(goodbye("this node was revoked", COME_BACK_LATE_MS)),
    }
}

async fn first(incoming: &mut impl FromAgent) -> Option<Box<Hello>> {
    match tokio::time::timeout(FIRST, incoming.next()).await {
        Ok(Some(Ok(AgentMessage { message: Some(agent_message::Message::Hello(hello)) }))) => {
            Some(Box::new(hello))
        }
        _ => None,
    }
}

async fn farewell(outgoing: &Outgoing, end: End) {
    if let End::Say(goodbye) = end {
        let message = ServerMessage { message: Some(server_message::Message::Goodbye(goodbye)) };
        // An agent that does not read it finds the stream closed instead.
        let _ = outgoing.send_timeout(Box::new(Ok(message)), LAST).await;
    }
}

impl Session {
    async fn send(&self, message: server_message::Message) -> Result<(), End> {
        let said = Box::new(Ok(ServerMessage { message: Some(message) }));
        self.outgoing.send(said).await.map_err(|_| End::Gone)
    }

    async fn send_order(&self, order: Order) -> Result<(), End> {
        self.context.streams.ordered();
        self.send(server_message::Message::Order(order)).await
    }

    async fn hold(&self, mut place: Place, hello: Box<Hello>, incoming: impl FromAgent) -> End {
        tracing::info!(
            node = self.caller.node,
            session = self.number,
            agent = hello.agent_version,
            "session began"
        );
        let welcome = Welcome {
            cluster_id: self.context.authority.cluster_id().to_owned(),
            db_epoch: unsigned(self.db_epoch),
            session: unsigned(self.number),
            heartbeat_seconds: u32::try_from(self.context.heartbeat.as_secs()).unwrap_or(u32::MAX),
            server_version: VERSION.to_owned(),
        };
        if self.send(server_message::Message::Welcome(welcome)).await.is_err() {
            return End::Gone;
        }
        // Sequences count anew in a restored database: a cursor from another epoch means nothing here.
        let cursor = if signed(hello.db_epoch) == self.db_epoch { signed(hello.cursor) } else { 0 };
        let openings = place.openings();
        let credentials = hello.credentials;
        tokio::select! {
            // In this order, so that a simulation does the same each time.
            biased;
            goodbye = place.ended() => End::Say(goodbye),
            () = self.outgoing.closed() => End::Gone,
            end = self.lend(openings) => end,
            end = self.listen(&place, incoming) => end,
            end = self.order(&place, cursor, credentials) => end,
        }
    }

    /// Streams what the node should hold above `sent`, and whenever a bell rings, what is new.
    async fn order(&self, place: &Place, sent: i64, credentials: Option<Credentials>) -> End {
        let mut told = Told { sent, caught_up: false, has_looked: false, decided: Vec::new() };
        Box::pin(self.known.hear(&self.desk, &self.caller.node, credentials)).await;
        loop {
            if let Err(end) = Box::pin(self.tell(place, &mut told)).await {
                return end;
            }
            place.look().await;
        }
    }

    /// All that is new.
    async fn tell(&self, place: &Place, told: &mut Told) -> Result<(), End> {
        place.sent(told.sent);
        let look = Look { is_first: !told.has_looked, ..self.look(told.sent) };
        let news = self.desk.news.ask(look).await.ok_or_else(unreadable)?;
        if let Some(end) = end_of(news.standing) {
            return Err(end);
        }
        told.has_looked = true;
        if self.known.has_retired(&self.context) {
            return Err(goodbye("this node's certificate is of an authority that is trusted no more", 1_000));
        }
        if let Some(trust) = self.known.news(&self.context) {
            self.send(server_message::Message::Trust(trust)).await?;
        }
        self.send_rows(news.removals).await?;
        if news.decisions != told.decided {
            told.decided.clone_from(&news.decisions);
            let decisions = findings::decisions(news.decisions);
            self.send(server_message::Message::Decisions(decisions)).await?;
        }
        let before = told.sent;
        if news.is_far_behind {
            self.send_above(place, &mut told.sent).await?;
        }
        self.send_rows(news.orders).await?;
        told.sent = told.sent.max(news.head);
        place.sent(told.sent);
        if !told.caught_up || told.sent > before {
            told.caught_up = true;
            let up = CaughtUp { sequence: unsigned(told.sent) };
            self.send(server_message::Message::CaughtUp(up)).await?;
        }
        Ok(())
    }

    fn look(&self, sent: i64) -> Look {
        let Caller { node, serial, .. } = &self.caller;
        let (node, serial) = (node.clone(), serial.clone());
        Look { node, session: self.number, serial, sent, is_first: false }
    }

    /// By the page: of a node that has much to hear.
    async fn send_above(&self, place: &Place, sent: &mut i64) -> Result<(), End> {
        let (store, node) = (&self.context.store, &self.caller.node);
        loop {
            place.sent(*sent);
            let rows = insist("orders", || store.assignments_after(node, *sent, PAGE)).await;
            let rows = rows.ok_or_else(unreadable)?;
            let Some(last) = rows.last().map(|row| row.sequence) else { return Ok(()) };
            self.send_rows(rows).await?;
            *sent = last;
        }
    }

    async fn send_rows(&self, rows: Vec<AssignmentRow>) -> Result<(), End> {
        for row in rows {
            let object = row.object_id.clone();
            if let Err(error) = &row.secrets {
                // What comes after it would raise the agent's cursor, and this one would never be sent.
                tracing::error!(error, object, "an order has a secret that cannot be opened, and waits");
                return Err(goodbye("a secret in the orders cannot be opened now", COME_BACK_LATE_MS));
            }
            match report::order(row, self.db_epoch) {
                Ok(order) => self.send_order(order).await?,
                Err(error) => tracing::error!(%error, object, "an order cannot be read and is not sent"),
            }
        }
        Ok(())
    }

    /// Whether this session still is the node's newest, with a certificate that is still good.
    async fn standing(&self) -> Option<End> {
        match self.desk.news.ask(self.look(i64::MAX)).await {
            Some(news) => end_of(news.standing),
            None => Some(goodbye("the session cannot be looked up", COME_BACK_LATE_MS)),
        }
    }

    async fn lend(&self, openings: Option<mpsc::Receiver<Box<OpenStream>>>) -> End {
        if let Some(mut openings) = openings {
            while let Some(wanted) = openings.recv().await {
                if let Err(end) = self.send(server_message::Message::OpenStream(*wanted)).await {
                    return end;
                }
            }
        }
        // A newer session has taken this one's place; it is told so by `ended`.
        std::future::pending().await
    }

    async fn listen(&self, place: &Place, incoming: impl FromAgent) -> End {
        let mut ear = Ear::new(incoming, self.context.heartbeat * 3);
        let mut not_after = self.caller.not_after;
        place.certificate_ends(not_after);
        loop {
            let message = match ear.next().await {
                Ok(message) => message,
                Err(deaf) => return self.end_of(deaf),
            };
            if self.context.now() > not_after {
                return goodbye("the certificate has expired and was not renewed", COME_BACK_LATE_MS);
            }
            Box::pin(self.known.watch(&self.context, &self.caller.node)).await;
            if let Some(agent_message::Message::Report(first)) = message {
                match Box::pin(ear.with_more(first)).await {
                    Ok(reports) => Box::pin(self.keep(reports)).await,
                    Err(deaf) => return self.end_of(deaf),
                }
                continue;
            }
            match Box::pin(self.hear(place, message)).await {
                Ok(Some(renewed)) => {
                    not_after = renewed;
                    place.certificate_ends(not_after);
                }
                Ok(None) => {}
                Err(end) => return end,
            }
        }
    }

    fn end_of(&self, deaf: Deaf) -> End {
        match deaf {
            Deaf::Gone => End::Gone,
            Deaf::Silent => goodbye("nothing was heard for three heartbeats", 1_000),
            Deaf::Nonsense(why) => goodbye(format!("a message cannot be read: {why}"), COME_BACK_LATE_MS),
            Deaf::Flooded => {
                tracing::warn!(node = self.caller.node, "an agent floods the server and is cut off");
                goodbye("too many messages; this agent is cut off for a while", COME_BACK_LATE_MS)
            }
        }
    }

    /// Reports on different objects.
    async fn keep(&self, reports: Vec<Report>) {
        let node = &self.caller.node;
        let mut kept = Vec::new();
        for report in reports {
            self.context.streams.reported();
            match report::node_report(report) {
                Some(report) => kept.push(self.desk.report(node, report)),
                None => tracing::warn!(node, "a report without a state is ignored"),
            }
        }
        futures_util::future::join_all(kept).await;
    }

    /// One message; after a renewal, when the new certificate ends.
    async fn hear(
        &self,
        place: &Place,
        message: Option<agent_message::Message>,
    ) -> Result<Option<SystemTime>, End> {
        match message {
            Some(agent_message::Message::Node(status)) => {
                self.desk.status(&self.caller.node, report::node_status(&status)).await;
            }
            Some(agent_message::Message::Heartbeat(Heartbeat { echo, .. })) => {
                let lease = self.context.store.node_lease(&self.context.server_id, place.confirmed());
                let lease_ms = u32::try_from(lease.as_millis()).unwrap_or(0);
                let beat = server_message::Message::Heartbeat(Heartbeat { echo, lease_ms });
                // A full queue says as well that this server is alive.
                let _ = self.outgoing.try_send(Box::new(Ok(ServerMessage { message: Some(beat) })));
            }
            Some(agent_message::Message::Credentials(said)) => {
                self.known.hear(&self.desk, &self.caller.node, Some(said)).await;
            }
            Some(agent_message::Message::Renew(request)) => return self.renew(&request.csr_pem).await,
            Some(agent_message::Message::Findings(findings)) => {
                findings::keep(&self.context, &self.caller.node, findings).await;
            }
            // Reports are taken together; a newer agent may say what this server does not know.
            Some(agent_message::Message::Hello(_) | agent_message::Message::Report(_)) | None => {}
        }
        Ok(None)
    }

    async fn renew(&self, csr_pem: &str) -> Result<Option<SystemTime>, End> {
        let (context, node) = (&self.context, &self.caller.node);
        let leaf = match context.authority.sign_node_csr(csr_pem, node, context.now()) {
            Ok(leaf) => leaf,
            Err(error) => return Err(goodbye(error.to_string(), COME_BACK_LATE_MS)),
        };
        let (serial, not_after) = (leaf.serial_hex.as_str(), Timestamp::from(leaf.not_after));
        let kept = insist("certificate", || context.store.record_certificate(serial, node, not_after)).await;
        if kept.is_none() {
            return Ok(None);
        }
        // Only now, when a revocation would find both: a node revoked in this very moment gets no new one.
        if let Some(end) = self.standing().await {
            return Err(end);
        }
        tracing::info!(node, serial, csr = &sha256_hex(csr_pem.as_bytes())[..8], "a certificate was renewed");
        let answer =
            RenewResponse { certificate_chain_pem: leaf.chain_pem, trust_pem: context.authority.trust_pem() };
        self.send(server_message::Message::Renewed(answer)).await?;
        Ok(Some(leaf.not_after))
    }
}
