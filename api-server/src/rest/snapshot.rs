//! `GET .../snapshots/{id}/content`: the bytes of a snapshot, from its node, wherever that is connected; from any byte on,
//! so that whoever was cut off goes on (RFC 9110, ranges). Its ETag is its SHA-256.

use axum::body::Body;
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use futures_util::stream;

use super::extract::Ask;
use super::problem::{Answer, Problem};
use super::{Bytes, ConsoleEnds, Wanted};
use crate::kernel::{Clash, Error, Kind, Stored};

/// Of all its bytes, those that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    from: u64,
    length: u64,
}

/// Begins to send, once the node has opened it.
pub async fn content(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("content", kind.meta().kind)?;
    ask.no_query()?;
    let object = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    let (sha256, size) = taken(&object)?;
    let tag = format!("\"{sha256}\"");
    let part = wanted(&ask.parts.headers, &tag, size)?;
    let node = ask.ctx.store.assigned_node(&right, kind, &object.core.id).await?;
    let node = node.ok_or_else(|| Error::from(Clash::WrongState("no node holds it any more".into())))?;
    ask.takes_long()?;
    let Part { from, length } = part.unwrap_or(Part { from: 0, length: size });
    let ends = ask.ctx.consoles.open(&node, &object.core.id, Wanted::Snapshot { from }).await?;
    let pieces = futures_util::StreamExt::take_until(stream::unfold((ends, length), piece), ask.over());
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    let text = |text: String| HeaderValue::from_str(&text).map_err(Problem::internal);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(ETAG, text(tag)?);
    if part.is_some() {
        headers.insert(CONTENT_RANGE, text(format!("bytes {from}-{}/{size}", from + length - 1))?);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Its digest, and how many bytes it has.
fn taken(object: &Stored) -> Result<(String, u64), Error> {
    let sha256 = object.status["sha256"].as_str();
    match (sha256, object.status["size_bytes"].as_u64()) {
        (Some(sha256), Some(size)) => Ok((sha256.to_owned(), size)),
        _ => Err(Clash::WrongState("it was not taken yet: wait for its job".into()).into()),
    }
}

/// What is asked for; none: all. A range that cannot be read is as if it were not said, as RFC 9110 14.2 wants it; of
/// several at once all is sent.
fn wanted(headers: &HeaderMap, tag: &str, size: u64) -> Result<Option<Part>, Problem> {
    let said = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(range) = said(RANGE).and_then(|range| range.trim().strip_prefix("bytes=")) else {
        return Ok(None);
    };
    if headers.get(IF_RANGE).is_some_and(|known| known != tag) {
        return Ok(None);
    }
    let Some((first, last)) = range.split_once('-') else { return Ok(None) };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (from, end) = match (number(first), number(last)) {
        (Some(from), None) if last.trim().is_empty() => (from, size),
        (Some(from), Some(last)) if from <= last => (from, last.saturating_add(1).min(size)),
        (None, Some(last)) if first.trim().is_empty() => (size.saturating_sub(last), size),
        _ => return Ok(None),
    };
    match end.checked_sub(from).filter(|length| *length > 0) {
        Some(length) => Ok(Some(Part { from, length })),
        None => {
            let refused = Problem::new("range", format!("it has {size} bytes"));
            Err(refused.header(CONTENT_RANGE, &format!("bytes */{size}")))
        }
    }
}

type Left = (ConsoleEnds, u64);

/// The next piece, and no more than is wanted. What breaks off breaks the answer off.
async fn piece(((to_node, mut from_node), left): Left) -> Option<(std::io::Result<Bytes>, Left)> {
    if left == 0 {
        return None;
    }
    let ended = || Err("it ended before its end".to_owned());
    let most = usize::try_from(left).unwrap_or(usize::MAX);
    let piece =
        from_node.recv().await.unwrap_or_else(ended).map(|bytes| bytes.slice(..bytes.len().min(most)));
    let piece = piece.map_err(|why| {
        tracing::info!(why, "a snapshot broke off");
        std::io::Error::other(why)
    });
    let left = left - piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
    // Both ends are held: whoever drops one hangs up.
    Some((piece, ((to_node, from_node), left)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(range: &str, if_range: Option<&str>) -> Result<Option<(u64, u64)>, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, range.parse().unwrap());
        if let Some(known) = if_range {
            headers.insert(IF_RANGE, known.parse().unwrap());
        }
        let part = wanted(&headers, "\"ab\"", 100);
        part.map(|part| part.map(|part| (part.from, part.length))).map_err(|_| 416)
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (range, part) in [
            ("bytes=0-", Some((0, 100))),
            ("bytes=40-", Some((40, 60))),
            ("bytes=40-49", Some((40, 10))),
            ("bytes=99-1000", Some((99, 1))),
            ("bytes=-10", Some((90, 10))),
            ("bytes=-1000", Some((0, 100))),
            ("bytes=9-3", None),
            ("bytes=a-", None),
            ("bytes=0-1,5-6", None),
            ("lines=0-", None),
        ] {
            assert_eq!(asked(range, None), Ok(part), "{range}");
        }
        for range in ["bytes=100-", "bytes=200-300", "bytes=-0"] {
            assert_eq!(asked(range, None), Err(416), "{range}");
        }
        assert_eq!(asked("bytes=40-", Some("\"ab\"")), Ok(Some((40, 60))));
        assert_eq!(asked("bytes=40-", Some("\"cd\"")), Ok(None));
    }
}
