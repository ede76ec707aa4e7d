//! What this node trusts and shows: how it becomes something else over the session, and what the server is told of it.
use super::Shared;
use super::renewal::Renewal;
use crate::identity::IdentityError;
use rhyzome_proto::v1::{Credentials, RenewResponse, Trust};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Asked in vain so often, it is told: once may be a server that was restarted in between.
const OFTEN: u32 = 2;

/// As they are now.
pub(super) fn of(shared: &Shared, renewal_problem: String) -> Result<Credentials, IdentityError> {
    let loaded = shared.identity();
    Ok(Credentials {
        trust_sha256: rhyzome_pki::trust_digest(&loaded.trust_pem)?,
        certificate_pem: loaded.identity.leaf_pem(),
        renewal_problem,
    })
}

/// Tells the server. What cannot be told now is told by the next Hello.
fn tell(shared: &Shared, renewal_problem: String) {
    match of(shared, renewal_problem) {
        Ok(credentials) => shared.outbox.credentials(credentials),
        Err(error) => tracing::error!(%error, "what this node trusts and shows cannot be told"),
    }
}

/// A new certificate is asked for: if it was so before, and none came, that is told as well.
pub(super) fn tell_of_asking(shared: &Shared, renewal: &Mutex<Renewal>) -> Result<(), IdentityError> {
    let in_vain = renewal.lock().unwrap_or_else(PoisonError::into_inner).in_vain();
    if in_vain == OFTEN {
        let ends = shared.identity().times.not_after;
        tracing::warn!(in_vain, ?ends, "the server sends no new certificate; asking again and again");
        shared.outbox.credentials(of(shared, format!("asked {in_vain} times, and none came"))?);
    }
    Ok(())
}

/// A certificate that cannot be kept is logged, told, and asked for again; the present one is still good.
pub(super) fn take_over(shared: &Shared, renewed: &RenewResponse, renewal: &Mutex<Renewal>) {
    let kept = shared
        .folder
        .keep_certificate(&renewed.certificate_chain_pem, &renewed.trust_pem)
        .and_then(|()| shared.reload_identity());
    match kept {
        Ok(()) => {
            let times = shared.identity().times;
            *renewal.lock().unwrap_or_else(PoisonError::into_inner) =
                Renewal::of(times, shared.config.env.chance());
            tracing::info!("the node's certificate was renewed");
            tell(shared, String::new());
        }
        Err(error) => {
            tracing::error!(%error, "the renewed certificate cannot be kept; asking again");
            tell(shared, error.to_string());
        }
    }
}

/// Other roots from the next connection on. What cannot be kept is said again in the next session.
pub(super) fn take_trust(shared: &Shared, trust: &Trust, renewal: &Mutex<Renewal>) {
    let kept = shared.folder.keep_trust(&trust.trust_pem).and_then(|()| shared.reload_identity());
    if let Err(error) = kept {
        return tracing::error!(%error, "the roots that the server wants trusted cannot be kept");
    }
    if trust.renew_within_ms > 0 {
        let within = Duration::from_millis(trust.renew_within_ms.into());
        let env = &shared.config.env;
        renewal.lock().unwrap_or_else(PoisonError::into_inner).hurry(env.now(), within, env.chance());
    }
    tracing::info!(renew_within_ms = trust.renew_within_ms, "this node trusts other roots");
    tell(shared, String::new());
}
