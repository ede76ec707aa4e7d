//! One session: from dialing to its end.
use super::comeback::come_back;
use super::reach::{FromServer, answer};
use super::renewal::Renewal;
use super::{Link, LinkError, LinkEvent, attach, credentials, dial};
use crate::lease::ASK_EVERY;
use rhyzome_proto::v1::{
    AgentMessage, Goodbye, Heartbeat, Hello, RenewRequest, Welcome, agent_message, server_message,
};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_util::task::AbortOnDropHandle;

/// Messages that may wait for the network.
const OUTGOING: usize = 32;
/// Streams that are lent at once.
const MOST_LENT: usize = 64;
/// Heartbeats outside this are the server's mistake.
const HEARTBEAT_SECONDS: std::ops::RangeInclusive<u32> = 1..=300;

/// Holds one session; the error is why it ended.
pub(super) async fn hold(link: &Link) -> LinkError {
    let begun = match begin_in_time(link).await {
        Err(LinkError::RanOut) => match come_back(link).await {
            // By whose clock it is over is not asked again: the server decides.
            Ok(()) => begin(link).await,
            Err(error) => Err(error),
        },
        begun => begun,
    };
    match begun {
        Ok(session) => session.run(link).await,
        Err(error) => error,
    }
}

struct Session {
    outgoing: mpsc::Sender<AgentMessage>,
    incoming: FromServer,
    heartbeat: Duration,
}

async fn begin_in_time(link: &Link) -> Result<Session, LinkError> {
    match link.shared.config.env.now() > link.shared.identity().times.not_after {
        true => Err(LinkError::RanOut),
        false => begin(link).await,
    }
}

async fn begin(link: &Link) -> Result<Session, LinkError> {
    let config = &link.shared.config;
    let reached = link.reach.reach(link.shared.identity()).await?;
    same_cluster(link, reached.cluster_id)?;
    let (outgoing, messages) = mpsc::channel(OUTGOING);
    let hello = Hello {
        agent_version: config.agent_version.clone(),
        boot_id: config.boot_id.clone(),
        db_epoch: link.ledger.db_epoch(),
        cursor: link.ledger.cursor(),
        credentials: Some(credentials::of(&link.shared, String::new())?),
        machine_id: config.machine_id.clone(),
        incarnation: config.incarnation.clone(),
    };
    send(&outgoing, agent_message::Message::Hello(hello)).await?;
    let mut incoming = (reached.begin)(messages).await?;
    let first = async { incoming.next().await.transpose() };
    let first = answer(first, &config.server).await?.and_then(|first| first.message);
    let welcome = match first {
        Some(server_message::Message::Welcome(welcome)) => welcome,
        Some(server_message::Message::Goodbye(goodbye)) => return Err(farewell(goodbye)),
        _ => return Err(LinkError::Protocol("its first message is no Welcome".into())),
    };
    check_welcome(link, &welcome)?;
    tracing::info!(
        session = welcome.session,
        server_version = welcome.server_version,
        "session with the server"
    );
    link.tell(LinkEvent::Connected { db_epoch: welcome.db_epoch, session: welcome.session }).await?;
    Ok(Session { outgoing, incoming, heartbeat: Duration::from_secs(welcome.heartbeat_seconds.into()) })
}

fn same_cluster(link: &Link, offered: String) -> Result<(), LinkError> {
    let own = link.shared.identity().record.cluster_id.clone();
    if own == offered { Ok(()) } else { Err(LinkError::WrongCluster { own, offered }) }
}

fn check_welcome(link: &Link, welcome: &Welcome) -> Result<(), LinkError> {
    same_cluster(link, welcome.cluster_id.clone())?;
    let seen = link.ledger.db_epoch();
    if welcome.db_epoch < seen {
        return Err(LinkError::OlderDatabase { seen, offered: welcome.db_epoch });
    }
    if !HEARTBEAT_SECONDS.contains(&welcome.heartbeat_seconds) {
        return Err(LinkError::Protocol(format!("a heartbeat of {} s", welcome.heartbeat_seconds)));
    }
    Ok(())
}

fn farewell(goodbye: Goodbye) -> LinkError {
    let after = Duration::from_millis(goodbye.reconnect_after_ms.into());
    LinkError::Goodbye { reason: goodbye.reason, after }
}

async fn send(
    outgoing: &mpsc::Sender<AgentMessage>,
    message: agent_message::Message,
) -> Result<(), LinkError> {
    let gone = |_| LinkError::Connection("the session's stream is closed".into());
    outgoing.send(AgentMessage { message: Some(message) }).await.map_err(gone)
}

impl Session {
    async fn run(self, link: &Link) -> LinkError {
        let times = link.shared.identity().times;
        let renewal = Mutex::new(Renewal::of(times, link.shared.config.env.chance()));
        let Session { outgoing, incoming, heartbeat } = self;
        // Two directions on one task: a slow owner never holds the heartbeat back.
        let ended = tokio::select! {
            // A Goodbye says when to come back: it is heard before the end of the stream that it announces is seen.
            biased;
            ended = listen(link, incoming, heartbeat, &renewal) => ended,
            ended = speak(link, &outgoing, heartbeat, &renewal) => ended,
        };
        match ended {
            Ok(()) => LinkError::Connection("the server closed the session".into()),
            Err(error) => error,
        }
    }
}

async fn speak(
    link: &Link,
    outgoing: &mpsc::Sender<AgentMessage>,
    heartbeat: Duration,
    renewal: &Mutex<Renewal>,
) -> Result<(), LinkError> {
    let leases = &link.shared.leases;
    let mut last: Option<Instant> = None;
    loop {
        let every = if leases.wanted.load(Ordering::Relaxed) { heartbeat.min(ASK_EVERY) } else { heartbeat };
        let due = last.map_or_else(Instant::now, |last| last + every);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(due) => {
                last = Some(Instant::now());
                // Read before it is sent: whatever delays it from here on shortens the lease that answers it.
                let beat = Heartbeat { echo: millis(link.shared.config.env.uptime()), lease_ms: 0 };
                send(outgoing, agent_message::Message::Heartbeat(beat)).await?;
                let due = renewal.lock().unwrap_or_else(PoisonError::into_inner).is_due(link.shared.config.env.now());
                if due {
                    credentials::tell_of_asking(&link.shared, renewal)?;
                    let csr_pem = link.shared.folder.key()?.csr_pem().map_err(crate::identity::IdentityError::from)?;
                    send(outgoing, agent_message::Message::Renew(RenewRequest { csr_pem })).await?;
                }
            }
            () = leases.bell.notified() => last = None,
            // A message that is taken out and then not sent is reported again after the next Connected.
            message = link.shared.outbox.next() => {
                let gone = |_| LinkError::Connection("the session's stream is closed".into());
                outgoing.send(message).await.map_err(gone)?;
            }
        }
    }
}

async fn listen(
    link: &Link,
    mut incoming: FromServer,
    heartbeat: Duration,
    renewal: &Mutex<Renewal>,
) -> Result<(), LinkError> {
    let patience = heartbeat * 3;
    // Streams end with their session: the server that asked for them is gone.
    let mut lent: Vec<AbortOnDropHandle<()>> = Vec::new();
    let mut caught_up = false;
    loop {
        let message = match tokio::time::timeout(patience, incoming.next()).await {
            Ok(Some(Ok(message))) => message.message,
            Ok(None) => return Ok(()),
            Ok(Some(Err(status))) => return Err(LinkError::Connection(dial::refusal(&status))),
            Err(_) => return Err(LinkError::Silent(patience)),
        };
        match message {
            Some(server_message::Message::Order(order)) => {
                link.tell(LinkEvent::Order(Box::new(order))).await?
            }
            Some(server_message::Message::CaughtUp(up)) => {
                caught_up = true;
                link.tell(LinkEvent::CaughtUp(up.sequence)).await?
            }
            // Before that, what this node is to let go of may still be on its way.
            Some(server_message::Message::Heartbeat(beat)) if caught_up && beat.lease_ms > 0 => {
                let now = link.shared.config.env.uptime();
                let until =
                    Duration::from_millis(beat.echo).min(now) + Duration::from_millis(beat.lease_ms.into());
                link.tell(LinkEvent::Lease { until }).await?;
            }
            Some(server_message::Message::Renewed(renewed)) => {
                credentials::take_over(&link.shared, &renewed, renewal)
            }
            Some(server_message::Message::Trust(trust)) => {
                credentials::take_trust(&link.shared, &trust, renewal)
            }
            Some(server_message::Message::Decisions(all)) => {
                link.tell(LinkEvent::Decisions(all.decisions)).await?
            }
            Some(server_message::Message::OpenStream(wanted)) => {
                lent.retain(|stream| !stream.is_finished());
                if lent.len() >= MOST_LENT {
                    // Each would be a connection: whoever asked is told in time that nobody answered.
                    tracing::warn!(
                        object = wanted.object_id,
                        "{MOST_LENT} streams are lent; no more at once"
                    );
                    continue;
                }
                let stream = attach::lend(link.shared.clone(), wanted);
                lent.push(AbortOnDropHandle::new(tokio::spawn(stream)));
            }
            Some(server_message::Message::Goodbye(goodbye)) => return Err(farewell(goodbye)),
            // A newer server may say things that this agent does not know: they are not for it.
            Some(server_message::Message::Heartbeat(_) | server_message::Message::Welcome(_)) | None => {}
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
