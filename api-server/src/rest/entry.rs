//! Who comes in: the caller behind a request, or why there is none.

use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::domain::Domain;
use super::problem::Problem;
use super::shown::{self, Shown};
use super::{RestContext, cookie, denial, second_factor, share};
use crate::auth::{Cookie, RequestDetails, STRANGERS_HERE};
use crate::kernel::{Caller, Error};
use crate::store::Refused;

/// Somebody whom we know.
pub struct Known {
    /// Who it is.
    pub caller: Caller,
    /// The same, as an authenticator said it.
    pub said: Caller,
    /// What they came by, if it was a certificate or a cookie.
    pub shown: Option<Box<RequestDetails>>,
    /// The address that they come from.
    pub source: String,
}

/// Who sends this.
pub async fn known(ctx: &RestContext, parts: &Parts, request_id: &str) -> Result<Known, Problem> {
    let source = share::source(&parts.extensions);
    ctx.regulars.judge(ctx, parts, &source).await?;
    let found = look(ctx, parts, request_id, source.clone()).await;
    match &found {
        Ok(_) => ctx.regulars.were_good(parts),
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => ctx.gate.stranger(&source),
        Err(_) => {}
    }
    found
}

async fn look(ctx: &RestContext, parts: &Parts, request_id: &str, source: String) -> Result<Known, Problem> {
    let details = RequestDetails {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        source: source.clone(),
        certificates: parts.extensions.get::<Shown>().cloned().unwrap_or_default().0,
        from_another_site: shown::from_another_site(&parts.headers, &parts.uri),
        domain: parts.extensions.get::<Domain>().and_then(|domain| domain.0.clone()),
        cookie: cookie::shown(parts),
    };
    let authorization = match parts.headers.get(AUTHORIZATION).map(|value| value.to_str()) {
        Some(Err(_)) => return Err(Error::Unauthenticated("credentials must be ASCII".into()).into()),
        Some(Ok(text)) => Some(text),
        None => None,
    };
    let caller = match ctx.authenticators.authenticate(authorization, &details).await {
        Ok(caller) => caller,
        Err(refusal) => {
            if refusal.later {
                return Err(Error::Unavailable(refusal.reason).into());
            }
            denial::of_stranger(&ctx.store, &details, request_id, refusal.known.map(|known| *known));
            return Err(Error::Unauthenticated(refusal.reason).into());
        }
    };
    let said = caller.clone();
    let by_itself = said.browser.is_some() || authorization.is_none() && !details.certificates.is_empty();
    let shown = by_itself.then(|| {
        let cookie = details.cookie.clone().map(|cookie| Cookie { is_look: true, ..cookie });
        Box::new(RequestDetails { cookie, ..details.clone() })
    });
    let caller = match ctx.store.admit(caller, &details.source).await {
        Ok(caller) => caller,
        Err(Refused { error, caller }) => {
            if matches!(error, Error::Unauthenticated(_)) {
                let known = Some(caller).filter(|caller| !caller.name.is_empty());
                denial::of_stranger(&ctx.store, &details, request_id, known);
            }
            return Err(error.into());
        }
    };
    if let Some(tenant) = &details.domain
        && (caller.operator || caller.only_in.as_deref() != Some(tenant))
    {
        denial::of_stranger(&ctx.store, &details, request_id, Some(caller));
        return Err(Error::Unauthenticated(STRANGERS_HERE.into()).into());
    }
    if let Err(problem) = second_factor::demand(ctx, &said, parts).await {
        if problem.status() == StatusCode::UNAUTHORIZED {
            denial::of_stranger(&ctx.store, &details, request_id, Some(said));
        }
        return Err(problem);
    }
    Ok(Known { caller, said, shown, source })
}
