//! `GET .../instances/{id}/log`: what the guest has printed on its serial console, and with `follow` what it prints.

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use futures_util::{StreamExt as _, stream};

use super::extract::Ask;
use super::page::bad;
use super::problem::{Answer, Problem};
use super::{Bytes, ConsoleEnds, Wanted};
use crate::kernel::{Clash, Error, Kind};

/// More lines than any node keeps.
pub const MOST_LINES: u64 = 1_000_000;

/// Begins to send, once the node has opened it.
pub async fn log(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("log", kind.meta().kind)?;
    ask.query(&["follow", "tail"])?;
    let wanted = wanted(&ask)?;
    let object = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    let node = ask.ctx.store.assigned_node(&right, kind, &object.core.id).await?;
    let node = node.ok_or_else(|| Error::from(Clash::WrongState("no node holds it yet".into())))?;
    ask.takes_long()?;
    let ends = ask.ctx.consoles.open(&node, &object.core.id, wanted).await?;
    let mut response = Response::new(Body::from_stream(stream::unfold(ends, piece).take_until(ask.over())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

fn wanted(ask: &Ask) -> Result<Wanted, Problem> {
    let follow = match ask.parameter("follow") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(bad("follow", "must be `true` or `false`")),
    };
    let lines = |text: &str| {
        let lines = text.parse().ok().filter(|lines| *lines <= MOST_LINES);
        lines.ok_or_else(|| bad("tail", "must be a number of lines, 0 to 1000000"))
    };
    Ok(Wanted::Log { tail_lines: ask.parameter("tail").map(lines).transpose()?, follow })
}

/// The next piece. A log that breaks off breaks the answer off: nobody takes half of it for the whole.
async fn piece((to_guest, mut from_guest): ConsoleEnds) -> Option<(std::io::Result<Bytes>, ConsoleEnds)> {
    let piece = from_guest.recv().await?.map_err(|why| {
        tracing::info!(why, "a log broke off");
        std::io::Error::other(why)
    });
    // Both ends are held: whoever drops one hangs up.
    Some((piece, (to_guest, from_guest)))
}
