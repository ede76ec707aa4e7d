//! `GET .../instances/{id}/console`: the guest's serial console as a websocket, bytes both ways.

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseCode, CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::IntoResponse;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};

use super::extract::Ask;
use super::problem::{Answer, Problem};
use super::standing::Standing;
use super::{ConsoleEnds, Wanted};
use crate::kernel::{Clash, Error, Kind, Right};

/// The largest message of a client.
const MOST_AT_ONCE: usize = 64 << 10;
/// Bytes of a reason that fit into a frame that closes.
const LONGEST_REASON: usize = 120;

/// The console.
pub async fn console(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("console", kind.meta().kind)?;
    ask.no_query()?;
    lend(ask, kind, &right, Wanted::Console).await
}

/// Upgrades, once the node has lent what is wanted.
pub async fn lend(mut ask: Ask, kind: &'static dyn Kind, right: &Right, wanted: Wanted) -> Answer {
    let object = ask.ctx.store.get(right, kind, ask.id()?).await?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut ask.parts, &())
        .await
        .map_err(|_| Problem::new("upgrade-required", "connect with a websocket client"))?;
    let node = ask.ctx.store.assigned_node(right, kind, &object.core.id).await?;
    let node = node.ok_or_else(|| Error::from(Clash::WrongState("no node holds it yet".into())))?;
    ask.takes_long()?;
    let ends = ask.ctx.consoles.open(&node, &object.core.id, wanted).await?;
    let upgrade = upgrade.max_message_size(MOST_AT_ONCE).max_frame_size(MOST_AT_ONCE);
    let (over, standing) = (ask.over(), Standing::of(&ask));
    let ended = async move {
        tokio::select! {
            () = over => {}
            () = standing.lost() => {}
        }
    };
    Ok(upgrade.on_upgrade(|socket| carry(socket, ends, ended)).into_response())
}

async fn carry(
    socket: WebSocket,
    (to_guest, mut from_guest): ConsoleEnds,
    over: impl Future<Output = ()> + Send,
) {
    let (mut write, mut read) = socket.split();
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => return hang_up(write, close_code::POLICY, "this login has ended, or its rights are others").await,
            bytes = from_guest.recv() => match bytes {
                Some(Ok(bytes)) => {
                    if write.send(Message::Binary(bytes)).await.is_err() {
                        return;
                    }
                }
                Some(Err(why)) => return hang_up(write, close_code::ERROR, &why).await,
                None => return hang_up(write, close_code::AWAY, "it has ended").await,
            },
            message = read.next() => {
                let bytes = match message {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if to_guest.send(bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn hang_up(mut write: SplitSink<WebSocket, Message>, code: CloseCode, why: &str) {
    let reason: String = why.chars().filter(char::is_ascii).take(LONGEST_REASON).collect();
    let close = CloseFrame { code, reason: reason.into() };
    // The client may be gone too.
    let _ = write.send(Message::Close(Some(close))).await;
}
