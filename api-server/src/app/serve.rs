//! Accepts connections and serves a router on each, for as long as whoever is at the other end behaves.
//!
//! A connection is cut off, without a word, when no request comes on it, when one does not become whole, when nothing of
//! an answer is taken, or when requests are taken back by the hundred. `Line` keeps the accounts; this ends it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{Backlog, listen};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::GRACE;
use super::certificates::Certificates;
use crate::limits::{ConnectionLimits, Counts, network};
use crate::metrics::Metrics;
use crate::rest::{AskedFor, Line, Router, Shown, on_line};

/// How often the other end of an HTTP/2 connection is asked whether it is there, and how long it has to say so.
const ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Streams that the other end resets before anybody has looked at them, and those that it forces us to reset.
const RESETS: (usize, usize) = (32, 128);
/// What is kept of an answer until it is sent, of each request.
const SEND_BUFFER: usize = 128 << 10;
/// Headers of a request.
const MOST_HEADERS: usize = 100;
/// Connections that wait to be accepted; the system may have less.
const BACKLOG: i32 = 4096;
/// After a connection that could not be accepted: no file may be left to have.
const PAUSE: Duration = Duration::from_millis(50);

/// What is served, and how.
pub struct Serving {
    /// What.
    pub router: Router,
    /// With TLS, if something is shown.
    pub tls: Option<Certificates>,
    /// What is put up with.
    pub limits: ConnectionLimits,
    /// Where is counted what was not.
    pub metrics: Metrics,
}

struct Door {
    router: Router,
    tls: Option<Certificates>,
    limits: ConnectionLimits,
    metrics: Metrics,
    http: Builder<TokioExecutor>,
    open: Mutex<Open>,
    /// New requests are not taken any more; nor is anything.
    leaving: CancellationToken,
    over: CancellationToken,
}

/// Connections, all of them and by where they come from.
#[derive(Default)]
struct Open {
    all: usize,
    from: Counts,
}

/// One of them.
struct Place {
    door: Arc<Door>,
    from: String,
}

/// Serves until `stop`, and gives what is at work then a few seconds.
pub async fn serve(listener: TcpListener, serving: Serving, stop: CancellationToken) {
    let Serving { router, tls, limits, metrics } = serving;
    let door = Arc::new(Door {
        router: router.with_state(()),
        tls,
        http: http(&limits),
        limits,
        metrics,
        open: Mutex::default(),
        leaving: stop.clone(),
        over: CancellationToken::new(),
    });
    // Somebody who opens hundreds at once fills a short line, and whoever comes then waits for seconds.
    if let Err(error) = Backlog::new(BACKLOG).and_then(|most| listen(&listener, most)) {
        tracing::warn!(%error, "as few connections wait to be accepted as the system is used to");
    }
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match door.place(peer) {
                Ok(place) => drop(tasks.spawn(connection(stream, peer, place))),
                Err(limit) => door.metrics.refused(limit, ""),
            },
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    let _ = timeout(GRACE, tasks.wait()).await;
    door.over.cancel();
    tasks.wait().await;
}

fn http(limits: &ConnectionLimits) -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    // How long headers may take is seen to by the line: it knows an idle connection from one that is slow.
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(MOST_HEADERS)
        .max_buf_size(limits.header_bytes as usize);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes)
        .max_pending_accept_reset_streams(RESETS.0)
        .max_local_error_reset_streams(RESETS.1)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(ALIVE.0)
        .keep_alive_timeout(ALIVE.1);
    http
}

impl Door {
    /// A place for a connection from there, or which limit keeps it out.
    fn place(self: &Arc<Self>, peer: SocketAddr) -> Result<Place, &'static str> {
        let from = network(&peer.ip().to_string());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.all >= self.limits.most {
            return Err("connections");
        }
        if !open.from.add(&from, self.limits.of_one_address) {
            return Err("address-connections");
        }
        open.all += 1;
        Ok(Place { door: self.clone(), from })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.door.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        open.from.remove(&self.from);
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, place: Place) {
    let door = place.door.clone();
    // Answers are small, and whoever waits for one waits for all of it.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let Some(tls) = &door.tls else {
        return drive(&door, stream, peer, (AskedFor::Unsaid, Shown::default()), place).await;
    };
    match timeout(door.limits.header, encrypted(tls, stream)).await {
        Ok(Ok((stream, name))) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let shown = Shown(chain.iter().cloned().collect());
            drive(&door, stream, peer, (AskedFor::Tls(name), shown), place).await;
        }
        Ok(Err(error)) => tracing::debug!(error = format!("{error:#}"), %peer, "no TLS came about"),
        Err(_) => door.metrics.refused("header-seconds", ""),
    }
}

/// Shows what is to be shown to whoever asks for that name. The connection, and the name.
async fn encrypted(
    tls: &Certificates,
    stream: TcpStream,
) -> anyhow::Result<(TlsStream<TcpStream>, Option<Arc<str>>)> {
    let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let name = begun.client_hello().server_name().map(str::to_ascii_lowercase);
    let config = tls.shown_to(name.as_deref()).await.inspect_err(|error| {
        tracing::warn!(error = format!("{error:#}"), name, "nothing can be shown on the domain of a tenant");
    })?;
    Ok((begun.into_stream(config).await?, name.map(Arc::from)))
}

async fn drive<T>(door: &Door, stream: T, peer: SocketAddr, (asked, shown): (AskedFor, Shown), place: Place)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let line = Line::new(door.limits);
    let io = TokioIo::new(Watched { stream, line: line.clone(), _place: place });
    let service = TowerToHyperService::new(on_line(door.router.clone(), peer, asked, shown, line.clone()));
    let mut served = std::pin::pin!(door.http.serve_connection_with_upgrades(io, service));
    let mut leaving = false;
    loop {
        tokio::select! {
            ended = served.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, %peer, "a connection ended");
                }
                return;
            }
            why = line.over() => {
                tracing::debug!(why, %peer, "a connection was cut off");
                return door.metrics.refused(why, "");
            }
            () = door.leaving.cancelled(), if !leaving => {
                leaving = true;
                served.as_mut().graceful_shutdown();
            }
            () = door.over.cancelled() => return,
        }
    }
}

/// A stream that tells its line what happens on it, and keeps the place of its connection.
struct Watched<T> {
    stream: T,
    line: Line,
    _place: Place,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.line.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> Watched<T> {
    fn sent<V>(&self, polled: Poll<V>) -> Poll<V> {
        self.line.sent(polled.is_ready());
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.sent(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.sent(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.sent(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
