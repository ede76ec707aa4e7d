//! Who calls: the node in the certificate, if it is good *now*.
use super::ChannelContext;
use crate::kernel::Error;
use rhyzome_pki::{certificate_times, issuer_key, peer_identity};
use rustls::pki_types::CertificateDer;
use std::time::SystemTime;
use tonic::{Request, Status};

/// A node whose certificate TLS has verified, and the store does not refuse.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) node: String,
    pub(super) serial: String,
    /// By which the certificate names the key that has signed it.
    pub(super) issuer: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// The stranger learns one sentence; the log has the reason.
fn refuse(reason: &str, who: &str) -> Status {
    tracing::info!(reason, who, "a call was refused");
    Status::unauthenticated("this certificate is not accepted here")
}

/// Reads and checks the caller of any call. A connection may be older than what has happened to its
/// certificate since: so each call asks again.
pub(super) async fn caller<T>(context: &ChannelContext, request: &Request<T>) -> Result<Caller, Status> {
    let from = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
    let certificates = request.peer_certs().filter(|chain| !chain.is_empty());
    let Some(certificates) = certificates else {
        tracing::info!(who = from, "a call without a certificate was refused");
        return Err(Status::unauthenticated("a node's certificate is needed; join first"));
    };
    who_shows(context, &certificates[0], &from).await
}

/// The server of this cluster that calls, by its certificate: it lives for an hour, and nobody else has its key.
pub(super) fn calling_server<T>(context: &ChannelContext, request: &Request<T>) -> Result<String, Status> {
    let from = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
    let certificates = request.peer_certs().filter(|chain| !chain.is_empty());
    let certificates = certificates.ok_or_else(|| refuse("no certificate", &from))?;
    let who = rhyzome_pki::calling_server(&certificates[0]);
    let who = who.map_err(|error| refuse(&error.to_string(), &from))?;
    if who.cluster_id != context.authority.cluster_id() {
        return Err(refuse("it is of another cluster", &from));
    }
    Ok(who.server_id)
}

/// The node that shows this certificate, of which it is known that it is the cluster's.
pub(super) async fn who_shows(
    context: &ChannelContext,
    certificate: &CertificateDer<'_>,
    from: &str,
) -> Result<Caller, Status> {
    let who = peer_identity(certificate).map_err(|error| refuse(&error.to_string(), from))?;
    let times = certificate_times(certificate).map_err(|error| refuse(&error.to_string(), from))?;
    let issuer = issuer_key(certificate).map_err(|error| refuse(&error.to_string(), from))?;
    if who.cluster_id != context.authority.cluster_id() {
        return Err(refuse("it is of another cluster", from));
    }
    if context.now() > times.not_after {
        return Err(refuse("it has expired", &who.node_id));
    }
    let refused = context.store.certificate_refused(&who.serial, &who.node_id).await;
    if refused.map_err(|error| status_of(&error))? {
        return Err(refuse("it was revoked, or its node is gone", &who.node_id));
    }
    Ok(Caller {
        node: who.node_id,
        serial: who.serial,
        issuer,
        not_before: times.not_before,
        not_after: times.not_after,
    })
}

/// What an agent is told when the store could not do its part.
pub(super) fn status_of(error: &Error) -> Status {
    match error {
        Error::Unavailable(reason) => Status::unavailable(reason.clone()),
        Error::NotFound => Status::not_found("there is no such object"),
        error => {
            tracing::error!(%error, "a call from an agent failed");
            Status::internal("the server could not do this; its log says why")
        }
    }
}
