//! Connections: each does its handshake in a task of its own, so that a slow stranger delays nobody.
use arc_swap::ArcSwap;
use socket2::{SockRef, TcpKeepalive};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; more wait in the kernel's queue.
const HANDSHAKES: usize = 1024;
/// After so long without a word the kernel asks the other end whether it is there, and so often again.
const SILENCE: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(10);
const ASK_TIMES: u32 = 3;

/// Connections whose handshake is done.
pub(super) fn incoming(
    listener: TcpListener,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    shutdown: CancellationToken,
) -> impl Stream<Item = std::io::Result<TlsStream<TcpStream>>> {
    let (done, connections) = mpsc::channel(64);
    tokio::spawn(shutdown.run_until_cancelled_owned(accept(listener, tls, done)));
    ReceiverStream::new(connections)
}

/// The kernel finds out by itself that the other end has gone: agents say often enough that they are there, and pings of
/// our own beside that would wake both ends for nothing.
fn watch(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let alive = TcpKeepalive::new().with_time(SILENCE).with_interval(ASK_AGAIN).with_retries(ASK_TIMES);
    // Without the first, small messages wait for each other. A socket that refuses any of it is going away anyway.
    let _ = tcp.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&alive);
    let _ = socket.set_tcp_user_timeout(Some(SILENCE + ASK_AGAIN * ASK_TIMES));
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    done: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(place) = places.clone().acquire_owned().await {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a peer that gave up: neither ends the door.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, done) = (TlsAcceptor::from(tls.load_full()), done.clone());
        tokio::spawn(async move {
            let _place = place;
            watch(&tcp);
            match tokio::time::timeout(HANDSHAKE, tls.accept(tcp)).await {
                Ok(Ok(connection)) => {
                    // The server has stopped when nobody receives.
                    let _ = done.send(Ok(connection)).await;
                }
                Ok(Err(error)) => tracing::info!(%peer, %error, "handshake refused"),
                Err(_) => tracing::info!(%peer, "handshake took too long"),
            }
        });
    }
}
