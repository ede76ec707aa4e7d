//! `PUT .../images/{id}/content`: the bytes of an image.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use tokio::time::timeout;

use super::extract::{Ask, linger};
use super::problem::{Answer, Problem};
use super::shape::answer;
use crate::blobs::BlobError;
use crate::kernel::{Clash, Error, FieldError, Kind};

/// Takes the bytes, and answers the image with its content.
pub async fn put(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("update", kind.meta().kind)?;
    ask.no_query()?;
    ask.no_key("the same bytes again change nothing, whoever sends them")?;
    let media = ask.parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if media.is_some_and(|media| media != "application/octet-stream") {
        let detail = "send the bytes themselves, as `application/octet-stream`";
        return Err(Problem::new("unsupported-media-type", detail));
    }
    let image = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    right.may_change(&image.core)?;
    if image.core.deleted_at.is_some() {
        return Err(Error::from(Clash::WrongState("it is being deleted".into())).into());
    }
    ask.takes_long()?;
    let blobs = ask.ctx.blobs.clone();
    if ask.content_length().is_some_and(|length| length > blobs.most_bytes()) {
        linger(ask.take_body().into_data_stream()).await;
        return Err(refused(BlobError::TooLarge(blobs.most_bytes())));
    }
    let mut stream = ask.take_body().into_data_stream();
    let (time, late) = (ask.ctx.gate.config().body.time, AtomicBool::new(false));
    let pieces = unfold((&mut stream, &late), |(stream, late)| async move {
        let piece = timeout(time, stream.next()).await.unwrap_or_else(|_| {
            late.store(true, Ordering::Relaxed);
            None
        });
        // What ends too early is no image: it is not taken for the whole.
        let piece = if late.load(Ordering::Relaxed) { Err(()) } else { piece?.map_err(drop) };
        Some((piece, (stream, late)))
    });
    let arrived = match blobs.receive(Box::pin(pieces)).await {
        Ok(arrived) => arrived,
        Err(_) if late.load(Ordering::Relaxed) => return Err(ask.too_slow(time)),
        Err(error) => {
            linger(stream).await;
            return Err(refused(error));
        }
    };
    let object =
        blobs.publish(&ask.ctx.store, &right, &image.core.id, arrived, ask.asked()).await.map_err(refused)?;
    Ok(answer(StatusCode::OK, kind, &object, ask.caller()))
}

fn refused(error: BlobError) -> Problem {
    let text = error.to_string();
    match error {
        BlobError::TooLarge(_) => Problem::new("too-large", text),
        BlobError::BrokeOff(_) => Problem::new("malformed", text),
        BlobError::Refused(_) => Problem::from(Error::Invalid(vec![FieldError::new("content", text)])),
        BlobError::Store(error) => error.into(),
        BlobError::Io(_) => Problem::internal(text),
    }
}
