//! `/v1/session`: a person's session in a browser. It begins with what shows who somebody is, goes on with a cookie, and
//! is over soon.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::cookie::{self, Here, Which};
use super::extract::Ask;
use super::problem::{Answer, Problem};
use crate::auth::{Ended, Refusal, open_hint};
use crate::kernel::{Caller, Clash, Error};
use crate::store::{BrowserSession, NewBrowserSession, browser_hash, browser_secret};

const NO_HOST: &str = "say for which host this is (`Host`): a cookie is of one";

/// `GET /v1/session`
pub async fn show(mut ask: Ask) -> Answer {
    ask.no_query()?;
    ask.no_body().await?;
    let session = own(&ask).await?;
    let secret = cookie::secret(&ask.parts, Which::Session).ok().flatten().unwrap_or_default();
    Ok(Json(told(&ask, ask.caller(), &session, secret)).into_response())
}

/// `POST /v1/session`
pub async fn begin(mut ask: Ask) -> Answer {
    ask.no_query()?;
    ask.no_key("a session has a secret that is told once, and kept with no answer")?;
    ask.no_body().await?;
    let here = Here::of(&ask.parts).ok_or_else(|| Problem::new("malformed", NO_HOST))?;
    if cookie::is_from_elsewhere(&ask.parts.headers, &here) {
        return Err(Error::Denied("nobody begins a session for a page of another site".into()).into());
    }
    let said = &ask.origin().said;
    let by_hand = said.second_factor.is_some() || said.authenticator.is_empty();
    let now = ask.ctx.authenticators.now(said).filter(|_| by_hand && said.browser.is_none());
    let why = "a session begins with a name and a password, with the operator's token, or by `GET /v1/session/login`";
    let (_, mark) = now.ok_or_else(|| Error::from(Clash::WrongState(why.into())))?.map_err(of_refusal)?;
    let secret = browser_secret(ask.ctx.store.env());
    let new = NewBrowserSession {
        hash: browser_hash(secret.reveal()),
        caller: said.clone(),
        domain: said_domain(&ask).to_owned(),
        mark,
        instead_of: before(&ask),
        asked: ask.asked().clone(),
        ..NewBrowserSession::default()
    };
    let (session, ended) = ask.ctx.store.begin_browser_session(new).await?;
    tell(&ask, ended);
    let body = told(&ask, ask.caller(), &session, secret.reveal());
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    here.set(&mut response, Which::Session, Some(secret.reveal()));
    Ok(response)
}

/// `DELETE /v1/session`
pub async fn end(mut ask: Ask) -> Answer {
    ask.no_query()?;
    ask.no_body().await?;
    let session = own(&ask).await?;
    let ended = ask.ctx.store.end_browser_session(&session.hash, ask.caller(), ask.asked()).await?;
    tell(&ask, ended);
    let secret = cookie::secret(&ask.parts, Which::Session).ok().flatten().unwrap_or_default();
    let mut response: Response = match end_url(&ask, &session, secret).await {
        Some(url) => Json(json!({ "end_session_url": url })).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    };
    if let Some(here) = Here::of(&ask.parts) {
        here.set(&mut response, Which::Session, None);
    }
    Ok(response)
}

/// Where the login at the provider is ended that the session came of.
async fn end_url(ask: &Ask, session: &BrowserSession, secret: &str) -> Option<String> {
    let hint = open_hint(secret, &session.hint)?;
    let domain = (!session.domain.is_empty()).then_some(session.domain.as_str());
    ask.ctx.authenticators.end_url(domain, &session.caller.authenticator, &hint).await
}

/// Nobody is let in.
pub fn of_refusal(Refusal { reason, later, .. }: Refusal) -> Problem {
    if later { Error::Unavailable(reason).into() } else { Error::Unauthenticated(reason).into() }
}

/// The session by whose cookie somebody came.
async fn own(ask: &Ask) -> Result<BrowserSession, Problem> {
    let Some(hash) = &ask.caller().browser else {
        let why = "you came by no session: `POST /v1/session` begins one, `GET /v1/whoami` tells who you are";
        return Err(Error::from(Clash::WrongState(why.into())).into());
    };
    let gone = || Error::Unauthenticated("this session has ended: log in again".into());
    Ok(ask.ctx.store.browser_session(hash).await?.ok_or_else(gone)?)
}

/// The session that a browser has had until now: what counts is what it shows besides.
fn before(ask: &Ask) -> Option<String> {
    cookie::secret(&ask.parts, Which::Session).ok().flatten().map(browser_hash)
}

fn said_domain(ask: &Ask) -> &str {
    let domain = ask.parts.extensions.get::<super::domain::Domain>();
    domain.and_then(|domain| domain.tenant()).unwrap_or_default()
}

/// What has ended here counts here no more, before it is heard of.
fn tell(ask: &Ask, ended: impl IntoIterator<Item = Ended>) {
    ended.into_iter().for_each(|ended| ask.ctx.authenticators.tell(ended));
}

fn told(ask: &Ask, caller: &Caller, session: &BrowserSession, secret: &str) -> Value {
    let now = ask.ctx.store.env().now();
    json!({
        "name": caller.name, "authenticator": caller.authenticator, "operator": caller.operator,
        "tenant": caller.only_in, "user": caller.user, "made_at": session.made_at,
        "idle_ends_at": session.ends(now), "ends_at": session.until, "csrf": cookie::csrf(secret),
    })
}
