//! The product's face, and the only place that knows HTTP and OpenAPI.
//!
//! `mount` makes the routes of every kind and, in the same act, their part of the document; the handlers are
//! the same few for all kinds. Whatever goes wrong becomes a problem in `problem.rs`.

mod access;
mod action;
mod bulk;
mod console;
mod console_log;
mod content;
mod cookie;
mod crud;
mod denial;
mod document;
mod domain;
mod entry;
mod envelope;
mod events;
mod extract;
mod invite;
mod jobs;
mod json;
mod layers;
mod line;
mod login;
mod metrics;
mod mount;
mod node;
mod operation;
mod operations;
mod page;
mod pages;
mod plan;
mod problem;
mod quota;
mod root;
mod schemas;
mod second_factor;
mod session;
mod session_login;
mod shape;
mod share;
mod shown;
mod snapshot;
mod ssh;
mod standing;
mod wait;
mod webhook;
mod write;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::auth::Authenticators;
use crate::blobs::Blobs;
use crate::kernel::Error;
use crate::limits::Gate;
use crate::metrics::Metrics;
use crate::outbound::Courier;
use crate::store::Store;

pub use axum::Router;
pub use axum::body::Bytes;
pub use document::document;
pub use line::Line;
pub use metrics::metrics_router;
pub use problem::TYPES;
pub use share::Regulars;
pub use shown::{AskedFor, OfLine, Shown, on_line};

/// Both ends of a console, a port, a log or a snapshot, as this side holds them: what is sent goes to the guest. It ends when either is
/// dropped; an error is the last that is received, and says why there is no more.
pub type ConsoleEnds = (mpsc::Sender<Bytes>, mpsc::Receiver<Result<Bytes, String>>);

/// What of an object on a node is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Its serial console, both ways.
    Console,
    /// A TCP port of it, both ways.
    Port(u16),
    /// What it has printed there.
    Log {
        /// The last lines only, so many.
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

/// Opens a guest's console, a port of it, its log, or a snapshot, on the node that holds it. The App connects it to the channel.
pub trait ConsoleHub: Send + Sync {
    /// That of this object on this node.
    fn open<'a>(
        &'a self,
        node: &'a str,
        object: &'a str,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<ConsoleEnds, Error>>;
}

/// How much is too much.
#[derive(Clone, Debug)]
pub struct RestLimits {
    /// For how long a join token is good.
    pub invite_seconds: i64,
}

/// What the front needs.
pub struct RestContext {
    /// The control plane's state.
    pub store: Store,
    /// Who knows callers.
    pub authenticators: Authenticators,
    /// Where uploaded images are kept.
    pub blobs: Blobs,
    /// The way to guests' consoles and their logs, and to snapshots.
    pub consoles: Arc<dyn ConsoleHub>,
    /// Who brings test messages.
    pub courier: Arc<Courier>,
    /// Limits.
    pub limits: RestLimits,
    /// What each may have of the server.
    pub gate: Gate,
    /// Whose credentials were good lately.
    pub regulars: Regulars,
    /// What an agent must know to join.
    pub joining: Joining,
    /// Where requests are counted.
    pub metrics: Metrics,
}

/// What an invitation tells an agent besides its secret.
#[derive(Clone)]
pub struct Joining {
    /// SHA-256 of the cluster's root certificate in hex, as it is now: the authority may be exchanged for another.
    pub root_sha256: Arc<dyn Fn() -> String + Send + Sync>,
    /// Where agents dial in, `host:port`.
    pub server: String,
}

// === impl RestLimits ===

impl Default for RestLimits {
    fn default() -> RestLimits {
        RestLimits { invite_seconds: 900 }
    }
}

/// Everything that is served over HTTP.
pub fn router(ctx: RestContext) -> Router {
    let mounted = mount::all(ctx.store.registry());
    let around = layers::Around {
        env: ctx.store.env().clone(),
        gate: ctx.gate.clone(),
        metrics: ctx.metrics.clone(),
        domains: ctx.authenticators.domains().clone(),
        operations: operations::Operations::of(&mounted.document.paths),
    };
    let pages = pages::router(document::render(&mounted.document));
    layers::around(mounted.router.with_state(Arc::new(ctx)).merge(pages), around)
}
