//! A lent stream: what it is for, and how its pieces go through frames. Whoever is slow makes the other end wait.
use bytes::Bytes;
use rhyzome_proto::v1::{LogWindow, OpenStream, StreamFrame};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// Pieces that may wait in each direction; then whoever writes waits.
pub(super) const WAITING: usize = 32;
/// A longer piece is nothing that an agent of ours sends.
const LONGEST_PIECE: usize = 64 << 10;

/// Both directions of a lent stream: write to the first, read from the second. It ends when either is dropped. An error
/// is the last piece, and says why there is no more.
pub type Lent = (mpsc::Sender<Bytes>, mpsc::Receiver<Result<Bytes, String>>);

/// What of an object a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its serial console, both ways.
    Console,
    /// A TCP port of it, both ways.
    Port(u16),
    /// What it has printed on its console.
    Log {
        /// Only the last lines, so many.
        tail_lines: Option<u64>,
        /// What it prints from now on, too.
        follow: bool,
    },
    /// The bytes of a snapshot.
    Snapshot {
        /// The first that is wanted.
        from: u64,
    },
}

impl Purpose {
    /// What is sent as a whole is told to be whole; what goes both ways has ended when it ends.
    fn has_an_end(self) -> bool {
        matches!(self, Purpose::Log { .. } | Purpose::Snapshot { .. })
    }

    /// As an agent is asked for it; the stream's id is still to come.
    pub(super) fn of(self, object: &str) -> OpenStream {
        let (purpose, log) = match self {
            Purpose::Console => ("console".to_owned(), None),
            Purpose::Port(port) => (format!("port:{port}"), None),
            Purpose::Snapshot { from } => (format!("snapshot:{from}"), None),
            Purpose::Log { tail_lines, follow } => ("log".to_owned(), Some(LogWindow { tail_lines, follow })),
        };
        OpenStream { object_id: object.to_owned(), purpose, log, ..OpenStream::default() }
    }

    /// As another server asks for it; none if this server does not know such a thing.
    pub(super) fn asked(wanted: &OpenStream) -> Option<Purpose> {
        match wanted.purpose.as_str() {
            "console" => Some(Purpose::Console),
            "log" => {
                let LogWindow { tail_lines, follow } = wanted.log.unwrap_or_default();
                Some(Purpose::Log { tail_lines, follow })
            }
            other => match other.split_once(':')? {
                ("port", port) => port.parse().ok().map(Purpose::Port),
                ("snapshot", from) => from.parse().ok().map(|from| Purpose::Snapshot { from }),
                _ => None,
            },
        }
    }
}

/// Frames of the lender to the user, until either is done. `lost`: what is said if they break off.
pub(super) async fn toward_user(
    frames: &mut (impl Stream<Item = Result<StreamFrame, Status>> + Unpin),
    to_user: &mpsc::Sender<Result<Bytes, String>>,
    purpose: Purpose,
    lost: &str,
) {
    // Where one of these cannot be sent, nobody reads any more.
    loop {
        let frame = match frames.next().await {
            Some(Ok(frame)) => frame,
            // What does so without a word may be half of it.
            None if !purpose.has_an_end() => return,
            Some(Err(_)) | None => {
                let _ = to_user.send(Err(lost.to_owned())).await;
                return;
            }
        };
        if frame.data.len() > LONGEST_PIECE {
            let _ = to_user.send(Err("the node sends pieces that are too long".to_owned())).await;
            return;
        }
        if !frame.data.is_empty() && to_user.send(Ok(frame.data.into())).await.is_err() {
            return;
        }
        if !frame.error.is_empty() {
            let _ = to_user.send(Err(frame.error)).await;
            return;
        }
        if frame.end {
            return;
        }
    }
}

/// What the user types to the lender, until either is done.
pub(super) async fn toward_lender(
    from_user: &mut mpsc::Receiver<Bytes>,
    outgoing: &mpsc::Sender<Result<StreamFrame, Status>>,
) {
    while let Some(data) = from_user.recv().await {
        let frame = StreamFrame { data: data.into(), ..StreamFrame::default() };
        if outgoing.send(Ok(frame)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(data: &str) -> Result<StreamFrame, Status> {
        Ok(StreamFrame { data: data.into(), ..StreamFrame::default() })
    }

    async fn heard(frames: Vec<Result<StreamFrame, Status>>, purpose: Purpose) -> Vec<Result<Bytes, String>> {
        let (to_user, mut from_lender) = mpsc::channel(WAITING);
        toward_user(&mut tokio_stream::iter(frames), &to_user, purpose, "lost").await;
        drop(to_user);
        let mut all = Vec::new();
        while let Some(piece) = from_lender.recv().await {
            all.push(piece);
        }
        all
    }

    #[tokio::test]
    async fn a_log_that_breaks_off_is_no_whole_log() {
        let log = Purpose::Log { tail_lines: None, follow: false };
        let end = || Ok(StreamFrame { end: true, ..StreamFrame::default() });
        let (a, lost) = (|| Ok(Bytes::from("a")), || Err("lost".to_owned()));
        assert_eq!(heard(vec![piece("a"), end(), piece("never")], log).await, [a()]);
        assert_eq!(heard(vec![piece("a")], log).await, [a(), lost()]);
        assert_eq!(heard(vec![piece("a")], Purpose::Snapshot { from: 7 }).await, [a(), lost()]);
        assert_eq!(heard(vec![piece("a"), Err(Status::unknown("cut"))], log).await, [a(), lost()]);
        let gone = Ok(StreamFrame { error: "gone".into(), ..StreamFrame::default() });
        assert_eq!(heard(vec![piece("a"), gone], log).await, [a(), Err("gone".into())]);
        // The guest has ended.
        assert_eq!(heard(vec![piece("a")], Purpose::Console).await, [a()]);
        let cut = heard(vec![piece("a"), Err(Status::unknown("cut"))], Purpose::Console).await;
        assert_eq!(cut, [a(), lost()]);
    }

    #[tokio::test]
    async fn a_piece_is_never_longer_than_it_may_be() {
        let said = heard(vec![piece(&"x".repeat(LONGEST_PIECE + 1))], Purpose::Console).await;
        assert!(matches!(&said[..], [Err(why)] if why.contains("too long")), "{said:?}");
    }

    #[test]
    fn what_is_asked_survives_the_way() {
        for purpose in [
            Purpose::Console,
            Purpose::Port(2222),
            Purpose::Snapshot { from: u64::MAX },
            Purpose::Log { tail_lines: None, follow: true },
            Purpose::Log { tail_lines: Some(0), follow: false },
        ] {
            assert_eq!(Purpose::asked(&purpose.of("inst_1")), Some(purpose));
        }
        assert_eq!(Purpose::asked(&OpenStream { purpose: "screen".into(), ..OpenStream::default() }), None);
    }
}
