//! Lends a stream: joins a unix socket on this node, a port of a guest, a log, or a file, to a stream that the server asked for.
use super::{Lendable, Shared};
use crate::console_log::{ConsoleLog, Piece};
use crate::host::netns;
use rhyzome_proto::v1::control_client::ControlClient;
use rhyzome_proto::v1::{LogWindow, OpenStream, StreamFrame};
use std::io::{self, SeekFrom};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Frames that may be on their way before what is behind them is not read any more.
const FRAMES: usize = 16;
const FRAME_BYTES: usize = 16 * 1024;
/// Of a file that lies there; no server takes a longer piece.
const FILE_FRAME_BYTES: usize = 64 * 1024;
/// How much of what was said before is sent first.
const BEFORE_BYTES: u64 = 64 * 1024;
/// A log that is followed is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// For a guest to take a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// For the server to take what was said last.
const LAST: Duration = Duration::from_secs(5);

/// What is read of a thing, and where it is written to.
type Ends = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

/// What is joined to the stream.
enum Source {
    Both { ends: Ends, before: Vec<u8> },
    Log { log: ConsoleLog, window: LogWindow },
    File(tokio::fs::File),
}

/// How a stream comes to its end on this side: all was said, or this went wrong.
type End = Result<(), String>;

type Frames = mpsc::Sender<StreamFrame>;

/// Runs until one end closes. What goes wrong is told to the server in the first frame, or ends the stream.
pub(super) async fn lend(shared: Arc<Shared>, wanted: OpenStream) {
    let source = find(&shared, &wanted).await;
    let (frames, outgoing) = mpsc::channel(FRAMES);
    let first = StreamFrame {
        stream_id: wanted.stream_id.clone(),
        error: source.as_ref().err().cloned().unwrap_or_default(),
        ..StreamFrame::default()
    };
    if frames.send(first).await.is_err() {
        return;
    }
    let attached = async {
        let channel = shared.dial().await.map_err(|error| error.to_string())?;
        let response = ControlClient::new(channel).attach(ReceiverStream::new(outgoing)).await;
        response.map_err(|status| super::dial::refusal(&status))
    };
    match (attached.await, source) {
        (Ok(response), Ok(source)) => carry(&shared, source, frames, response.into_inner()).await,
        (Ok(_), Err(reason)) => tracing::info!(object = wanted.object_id, reason, "a stream cannot be lent"),
        (Err(reason), _) => {
            tracing::warn!(object = wanted.object_id, reason, "a stream could not be attached")
        }
    }
}

async fn find(shared: &Shared, wanted: &OpenStream) -> Result<Source, String> {
    match (shared.config.socket_of)(&wanted.object_id, &wanted.purpose)? {
        Lendable::Log(log) => Ok(Source::Log { log, window: wanted.log.unwrap_or_default() }),
        Lendable::File { file, from } => {
            let opened = async {
                let mut opened = tokio::fs::File::open(&file).await?;
                opened.seek(SeekFrom::Start(from)).await?;
                Ok::<_, io::Error>(opened)
            };
            let unread = |error| format!("{} cannot be read: {error}", wanted.object_id);
            Ok(Source::File(opened.await.map_err(unread)?))
        }
        Lendable::Port { namespace, address } => {
            let work = move || netns::run_in(&namespace, || TcpStream::connect_timeout(&address, CONNECT));
            let connected = look(shared, work).await.and_then(|stream| {
                stream.set_nonblocking(true).map_err(|error| error.to_string())?;
                tokio::net::TcpStream::from_std(stream).map_err(|error| error.to_string())
            });
            let what = |error| format!("{} at {address} does not answer: {error}", wanted.object_id);
            let (reading, writing) = connected.map_err(what)?.into_split();
            Ok(Source::Both { ends: (Box::new(reading), Box::new(writing)), before: Vec::new() })
        }
        Lendable::Socket { socket, log } => {
            let socket = UnixStream::connect(&socket).await.map_err(|error| {
                format!("the {} of {} does not answer: {error}", wanted.purpose, wanted.object_id)
            })?;
            let before = match log {
                // What was said before is a courtesy: without it the stream works all the same.
                Some(log) => look(shared, move || end_of(&log)).await.unwrap_or_default(),
                None => Vec::new(),
            };
            let (reading, writing) = socket.into_split();
            Ok(Source::Both { ends: (Box::new(reading), Box::new(writing)), before })
        }
    }
}

/// Both ways, until one end is done; what ends on this side is said to have ended.
async fn carry(shared: &Shared, source: Source, frames: Frames, mut from_server: Streaming<StreamFrame>) {
    let ended = match source {
        Source::Both { ends: (reading, writing), before } => tokio::select! {
            ended = upward(before, reading, &frames) => ended,
            () = downward(&mut from_server, writing) => return,
        },
        Source::Log { log, window } => tokio::select! {
            ended = tell(shared, log, window, &frames) => ended,
            () = hung_up(&mut from_server) => return,
        },
        Source::File(file) => tokio::select! {
            ended = whole(file, &frames) => ended,
            () = hung_up(&mut from_server) => return,
        },
    };
    let last = StreamFrame { error: ended.err().unwrap_or_default(), end: true, ..StreamFrame::default() };
    if frames.send(last).await.is_ok() {
        drop(frames);
        // A server that does not take it has lost interest.
        let _ = tokio::time::timeout(LAST, hung_up(&mut from_server)).await;
    }
}

/// Something that blocks, in its own time.
async fn look<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match shared.config.env.blocking(work).await {
        Ok(Ok(seen)) => Ok(seen),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn unread(why: String) -> String {
    format!("the log cannot be read: {why}")
}

/// The last bytes of a log.
fn end_of(log: &ConsoleLog) -> io::Result<Vec<u8>> {
    let (first, end) = log.window(None)?;
    let mut at = first.max(end.saturating_sub(BEFORE_BYTES));
    let mut all = Vec::new();
    while at < end {
        let Piece::Bytes(bytes) = log.read(at)? else { break };
        at += bytes.len() as u64;
        all.extend(bytes);
    }
    Ok(all)
}

async fn send(frames: &Frames, data: Vec<u8>) -> End {
    let gone = |_| "the server has hung up".to_owned();
    frames.send(StreamFrame { data, ..StreamFrame::default() }).await.map_err(gone)
}

/// A log, and what comes behind it if that is wanted.
async fn tell(shared: &Shared, log: ConsoleLog, window: LogWindow, frames: &Frames) -> End {
    let (whole, lines) = (log.clone(), window.tail_lines);
    let (mut at, end) = look(shared, move || whole.window(lines)).await.map_err(unread)?;
    while window.follow || at < end {
        let reading = log.clone();
        match look(shared, move || reading.read(at)).await.map_err(unread)? {
            Piece::Bytes(mut bytes) => {
                if !window.follow {
                    bytes.truncate(usize::try_from(end - at).unwrap_or(usize::MAX));
                }
                at += bytes.len() as u64;
                send(frames, bytes).await?;
            }
            Piece::Lost(next) => {
                at = next;
                send(frames, b"\n[what came here is not kept any more]\n".to_vec()).await?;
            }
            Piece::End if window.follow => tokio::time::sleep(LOOK_AGAIN).await,
            Piece::Gone if window.follow && at == 0 => tokio::time::sleep(LOOK_AGAIN).await,
            Piece::End | Piece::Gone => break,
        }
    }
    Ok(())
}

/// A file to its end.
async fn whole(mut file: tokio::fs::File, frames: &Frames) -> End {
    loop {
        let mut piece = Vec::with_capacity(FILE_FRAME_BYTES);
        let read = (&mut file).take(FILE_FRAME_BYTES as u64).read_to_end(&mut piece).await;
        match read.map_err(|error| format!("it cannot be read to its end: {error}"))? {
            0 => return Ok(()),
            _ => send(frames, piece).await?,
        }
    }
}

async fn upward(before: Vec<u8>, mut socket: impl AsyncRead + Unpin, frames: &Frames) -> End {
    for piece in before.chunks(FRAME_BYTES) {
        send(frames, piece.to_vec()).await?;
    }
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let Ok(length @ 1..) = socket.read(&mut buffer).await else { return Ok(()) };
        send(frames, buffer[..length].to_vec()).await?;
    }
}

async fn downward(frames: &mut Streaming<StreamFrame>, mut socket: impl AsyncWrite + Unpin) {
    while let Ok(Some(frame)) = frames.message().await {
        if socket.write_all(&frame.data).await.is_err() {
            return;
        }
    }
}

/// Until the server does not listen any more. What it says is for nobody.
async fn hung_up(frames: &mut Streaming<StreamFrame>) {
    while let Ok(Some(_)) = frames.message().await {}
}
