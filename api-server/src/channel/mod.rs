//! The channel: the only place that knows gRPC. Agents dial in with mutual TLS, and stay.
//!
//! - `accept`: TLS, one task per connection. `caller`: who calls, from the certificate.
//! - `enroll`: the one service without a certificate, with `comeback` for those whose own has run out. `control`: all other calls.
//! - `door`: where sessions begin. `session`: orders out, reports in (`ear`), for one node. `sessions`: all that this server holds, and their bells. `together`: what many
//!   of them ask the store at once.
//! - `credentials`: what agents show and trust.
//! - `blobs`: an image's bytes. `streams`: consoles and logs, lent by agents (`lent`); `peers`: those of nodes whose session another
//!   server holds, and `peer`: that server's side of it.
//!
//! Nobody calls it to say that there is something to send: it hears bells, looks into the store, and looks
//! again every few seconds anyway. Revocation and "the newest session wins" take the same way, so that they
//! work across servers.

mod accept;
mod blobs;
mod caller;
mod comeback;
mod control;
mod credentials;
mod door;
mod ear;
mod enroll;
mod findings;
mod flood;
mod lent;
mod peer;
mod peers;
mod report;
mod session;
mod sessions;
mod streams;
mod together;

use crate::store::Store;
use anyhow::Context;
use arc_swap::ArcSwap;
pub use door::{SessionDoor, ToAgent, ToReturning};
pub use lent::{Lent, Purpose};
pub use peers::Peers;
use rhyzome_pki::{Authority, PkiError, ServerCertificate, grpc_server_config};
use rhyzome_proto::v1::control_server::ControlServer;
use rhyzome_proto::v1::enrollment_server::EnrollmentServer;
use rhyzome_proto::v1::peer_server::PeerServer;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
pub use streams::{StreamError, Streams};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;

/// The net under the bells: so often each node's numbers are compared.
pub const NET: Duration = Duration::from_secs(5);
/// How often agents say that they are there, where nothing else is configured.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// A message of an agent is never longer; a report's rendered files are the longest.
const LONGEST_MESSAGE: usize = 4 << 20;
/// A frame of a stream from one server to another holds what a user has typed.
const LONGEST_FRAME: usize = 128 << 10;
/// A request to join holds a token, a name and a signing request.
const LONGEST_JOIN: usize = 64 << 10;
/// How long calls may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// The server's own certificate is made anew this often; it lives 30 days.
const NEW_CERTIFICATE: Duration = Duration::from_secs(24 * 60 * 60);

/// How often to look whether the authority has been exchanged for another.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the channel works with.
pub struct ChannelContext {
    /// Where everything is.
    pub store: Store,
    /// Signs nodes' certificates and the server's own.
    pub authority: Arc<Authority>,
    /// This server among others.
    pub server_id: String,
    /// Names and addresses under which agents reach this server.
    pub names: Vec<String>,
    /// The folder with images' bytes, each named by its SHA-256.
    pub blobs: PathBuf,
    /// Keep a clone: streams that nodes lend are asked for there.
    pub streams: Streams,
    /// How often to look for what no bell told: `NET`, but where it is tested that the bells suffice.
    pub net: Duration,
    /// How often an agent is to say that it is there; after three times as long without a word it is not.
    pub heartbeat: Duration,
}

impl ChannelContext {
    /// Now, by the App's clock.
    fn now(&self) -> SystemTime {
        self.store.env().now().into()
    }
}

/// The gRPC door.
pub struct Channel;

impl Channel {
    /// Serves agents until `shutdown`; then tells each when to come back.
    pub async fn serve(
        listener: TcpListener,
        context: ChannelContext,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let context = Arc::new(context);
        let edition = context.authority.refresh()?;
        let shown = ServerCertificate::new(&context.authority.issue_server(&context.names, context.now())?)?;
        context.streams.shows(shown.clone());
        let tls = grpc_server_config(shown.clone(), &context.authority.trust_pem())?;
        let tls = Arc::new(ArcSwap::new(tls));
        let sessions = SessionDoor::open(context.clone()).await?;
        let incoming = accept::incoming(listener, tls.clone(), shutdown.clone());
        let _renewing = AbortOnDropHandle::new(tokio::spawn(follow(context.clone(), shown, tls, edition)));
        let ears = sessions.clone();
        let _bells = AbortOnDropHandle::new(tokio::spawn(async move { ears.hear().await }));
        let enroll = enroll::Enroll { context: context.clone(), door: sessions.clone() };
        let control = control::Control { context: context.clone(), sessions };
        let peer = peer::Peer { context: context.clone() };
        let server = Server::builder()
            .max_concurrent_streams(Some(64))
            .add_service(EnrollmentServer::new(enroll).max_decoding_message_size(LONGEST_JOIN))
            .add_service(ControlServer::new(control).max_decoding_message_size(LONGEST_MESSAGE))
            .add_service(PeerServer::new(peer).max_decoding_message_size(LONGEST_FRAME))
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        let farewell = async {
            shutdown.cancelled().await;
            context.streams.sessions().say_goodbye(context.store.env());
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            served = server => served.context("the gRPC door failed"),
            () = farewell => Ok(()),
        }
    }
}

/// Keeps the server's own certificate fresh, and follows the authority when it is exchanged for another. A certificate
/// that cannot be made now is tried again; the old one is good for weeks.
async fn follow(
    context: Arc<ChannelContext>,
    shown: Arc<ServerCertificate>,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    mut edition: u64,
) {
    let mut renewed = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let now = context.authority.refresh().unwrap_or_else(|error| {
            tracing::error!(%error, "the authority cannot be read; the one that is known stays");
            edition
        });
        if now == edition && renewed.elapsed() < NEW_CERTIFICATE {
            continue;
        }
        match take_over(&context, &shown) {
            Ok(config) => tls.store(config),
            Err(error) => {
                tracing::error!(%error, "the server's certificate could not be renewed");
                continue;
            }
        }
        if now != edition {
            // Each agent is told what is trusted now.
            context.streams.sessions().ring_all();
        }
        (edition, renewed) = (now, tokio::time::Instant::now());
    }
}

fn take_over(
    context: &ChannelContext,
    shown: &Arc<ServerCertificate>,
) -> Result<Arc<rustls::ServerConfig>, PkiError> {
    let config = grpc_server_config(shown.clone(), &context.authority.trust_pem())?;
    shown.replace(&context.authority.issue_server(&context.names, context.now())?)?;
    Ok(config)
}
