//! `PUT .../images/{id}/content`: the bytes of an image.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;

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
    let blobs = ask.ctx.blobs.clone();
    if ask.content_length().is_some_and(|length| length > blobs.most_bytes()) {
        linger(ask.take_body().into_data_stream()).await;
        return Err(refused(BlobError::TooLarge(blobs.most_bytes())));
    }
    let mut stream = ask.take_body().into_data_stream();
    let arrived = match blobs.receive(&mut stream).await {
        Ok(arrived) => arrived,
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
