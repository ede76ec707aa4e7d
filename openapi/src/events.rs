//! The stream of events: server-sent events, one by one.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Error;

/// An entry of the event log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Its number: without gaps.
    pub seq: i64,
    /// When it happened.
    pub at: String,
    /// `write`, `job`, `phase`, `denied`, `anonymous`, `system`; open.
    pub class: String,
    /// Whose; none for what operators own.
    pub tenant: Option<String>,
    /// Kind of the object.
    pub kind: String,
    /// Its id.
    pub resource: String,
    /// Its name.
    pub name: String,
    /// What was done.
    pub verb: String,
    /// How it ended.
    pub outcome: String,
    /// The phase that it came into.
    pub phase: Option<String>,
    /// The job.
    pub job: Option<String>,
    /// Who.
    pub actor: String,
    /// Why, or how often.
    pub detail: String,
    /// What else is said of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An open stream.
pub struct Events {
    url: String,
    bytes: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    parser: Parser,
    last: Option<i64>,
}

/// Takes a stream of bytes apart into events.
#[derive(Default)]
struct Parser {
    buffer: Vec<u8>,
}

/// What one block of lines says.
#[derive(Debug, Default, PartialEq)]
struct Block {
    id: Option<String>,
    name: String,
    data: String,
}

impl Events {
    pub(crate) fn of(url: &str, response: reqwest::Response, last: Option<i64>) -> Events {
        let bytes = Box::pin(response.bytes_stream());
        Events { url: url.to_owned(), bytes, parser: Parser::default(), last }
    }

    /// The next event; `None` when the server has ended the stream.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            while let Some(block) = self.parser.block() {
                if let Some(number) = block.id.as_ref().and_then(|id| id.parse().ok()) {
                    self.last = Some(number);
                }
                if block.data.is_empty() {
                    continue;
                }
                let strange =
                    || Error::Unexpected { url: self.url.clone(), status: 200, body: block.data.clone() };
                if block.name == "gone" {
                    return Err(strange());
                }
                return serde_json::from_str(&block.data).map(Some).map_err(|_| strange());
            }
            match self.bytes.next().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Error::unreachable(&self.url, &error)),
                Some(Ok(bytes)) => self.parser.buffer.extend_from_slice(&bytes),
            }
        }
    }

    /// The number to go on behind after the stream broke off.
    pub fn last(&self) -> Option<i64> {
        self.last
    }
}

impl Parser {
    /// The next whole block, if it has arrived.
    fn block(&mut self) -> Option<Block> {
        let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
        let text: Vec<u8> = self.buffer.drain(..end + 2).collect();
        let mut block = Block::default();
        for line in String::from_utf8_lossy(&text).lines() {
            // What begins with a colon is a comment.
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => block.id = Some(value.to_owned()),
                "event" => block.name = value.to_owned(),
                "data" => block.data.push_str(value),
                _ => {}
            }
        }
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_apart_however_they_arrive() {
        let mut parser = Parser::default();
        let mut blocks = Vec::new();
        for byte in b": hello\n\nid: 7\nevent: write\ndata: {\"seq\":7}\n\nid: 9\n\nid: 10" {
            parser.buffer.push(*byte);
            blocks.extend(parser.block());
        }
        let block = |id: &str, name: &str, data: &str| Block {
            id: Some(id.into()),
            name: name.into(),
            data: data.into(),
        };
        let wanted = [Block::default(), block("7", "write", "{\"seq\":7}"), block("9", "", "")];
        assert_eq!(blocks, wanted);
    }
}
