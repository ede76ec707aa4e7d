//! `GET /v1/session/login` sends a browser to the provider where somebody logs in; `GET /v1/session/callback` is where it comes
//! back, and has a session then. Both are opened by somebody who is nobody here yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::LOCATION;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use url::Url;

use super::RestContext;
use super::cookie::{self, Here, Which};
use super::domain::Domain;
use super::extract::query;
use super::layers::RequestId;
use super::page::bad;
use super::problem::{Answer, Problem};
use super::session::of_refusal;
use super::share::{self, Open};
use crate::auth::{Arrived, STRANGERS_HERE, Trip, seal_hint};
use crate::kernel::Error;
use crate::kernel::secret::Plain;
use crate::store::{Asked, BrowserLogin, NewBrowserSession, browser_hash, browser_secret};

const CALLBACK: &str = "/v1/session/callback";
/// The longest path to which somebody comes back, and the longest code of a provider.
const LONGEST: usize = 2048;

/// `GET /v1/session/login`
pub async fn login(_: Open, State(ctx): State<Arc<RestContext>>, domain: Domain, request: Request) -> Answer {
    let (parts, _) = request.into_parts();
    let asked = query(&parts)?;
    if let Some(strange) = asked.keys().find(|key| !matches!(key.as_str(), "authenticator" | "return_to")) {
        return Err(bad(strange, "is no parameter here"));
    }
    let return_to = asked.get("return_to").map_or("/", String::as_str);
    if !is_own_path(return_to) {
        return Err(bad("return_to", "must be a path of this host: `/path`"));
    }
    let here = here(&parts)?;
    let names: Vec<String> =
        ctx.authenticators.logins(domain.tenant()).into_iter().map(|login| login.name).collect();
    let name = match (asked.get("authenticator"), &names[..]) {
        (Some(name), _) | (None, [name]) => name.clone(),
        (None, _) => {
            return Err(bad("authenticator", "must say where you log in: `GET /v1/login` lists them"));
        }
    };
    let secret = browser_secret(ctx.store.env());
    let trip = Trip::new(secret.clone(), format!("{}{CALLBACK}", here.origin));
    let unknown = || bad("authenticator", "is none where somebody logs in by a browser");
    let place = ctx.authenticators.sent(domain.tenant(), &name, &trip).await.ok_or_else(unknown)?;
    let place = place.map_err(|why| {
        tracing::warn!(authenticator = name, why, "nobody can be sent to a provider");
        Problem::from(Error::Unavailable(why))
    })?;
    let login = BrowserLogin {
        hash: browser_hash(secret.reveal()),
        authenticator: name,
        domain: domain.tenant().unwrap_or_default().to_owned(),
        return_to: return_to.to_owned(),
    };
    ctx.store.begin_browser_login(login).await?;
    let mut response = sent_to(&place)?;
    here.set(&mut response, Which::Login, Some(secret.reveal()));
    Ok(response)
}

/// `GET /v1/session/callback`
pub async fn callback(
    _: Open,
    State(ctx): State<Arc<RestContext>>,
    domain: Domain,
    request: Request,
) -> Answer {
    let (parts, _) = request.into_parts();
    let asked = query(&parts)?;
    let here = here(&parts)?;
    let stray = || {
        let text = "this login did not begin in this browser, was done already, or took longer than ten minutes: begin again";
        Problem::new("malformed", text)
    };
    let secret = cookie::secret(&parts, Which::Login).ok().flatten().ok_or_else(stray)?;
    let secret = Plain::new(secret.to_owned());
    let trip = Trip::new(secret.clone(), format!("{}{CALLBACK}", here.origin));
    // Before it is taken: whoever brings another browser here does not end what that one has begun.
    if asked.get("state") != Some(&trip.state()) {
        return Err(stray());
    }
    let taken = ctx.store.take_browser_login(&browser_hash(secret.reveal())).await?;
    let taken =
        taken.filter(|login| login.domain == domain.tenant().unwrap_or_default()).ok_or_else(stray)?;
    let code = code(&asked)?;
    let iss = asked.get("iss").map(String::as_str);
    let arrived = ctx.authenticators.back(domain.tenant(), &taken.authenticator, (&trip, code, iss)).await;
    let arrived = arrived.ok_or_else(stray)?.map_err(of_refusal)?;
    let secret = begun(&ctx, &parts, &domain, arrived).await?;
    let mut response = sent_to(&taken.return_to)?;
    here.set(&mut response, Which::Session, Some(secret.reveal()));
    here.set(&mut response, Which::Login, None);
    Ok(response)
}

/// The secret of a session of whoever has come back, if they are let in.
async fn begun(
    ctx: &RestContext,
    parts: &Parts,
    domain: &Domain,
    Arrived { caller, hint }: Arrived,
) -> Result<Plain, Problem> {
    let now = ctx.authenticators.now(&caller);
    let (_, mark) = now.ok_or_else(|| Error::Unauthenticated(STRANGERS_HERE.into()))?.map_err(of_refusal)?;
    let source = share::source(&parts.extensions);
    let admitted = ctx.store.admit(caller.clone(), &source).await.map_err(|refused| refused.error)?;
    if domain.tenant().is_some_and(|tenant| admitted.operator || admitted.only_in.as_deref() != Some(tenant))
    {
        return Err(Error::Unauthenticated(STRANGERS_HERE.into()).into());
    }
    let secret = browser_secret(ctx.store.env());
    let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
    let new = NewBrowserSession {
        hash: browser_hash(secret.reveal()),
        caller,
        domain: domain.tenant().unwrap_or_default().to_owned(),
        mark,
        hint: seal_hint(secret.reveal(), &hint),
        instead_of: cookie::secret(parts, Which::Session).ok().flatten().map(browser_hash),
        asked: Asked { request_id, source, ..Asked::default() },
    };
    let (_, ended) = ctx.store.begin_browser_session(new).await?;
    ended.into_iter().for_each(|ended| ctx.authenticators.tell(ended));
    Ok(secret)
}

/// What the provider gives, or why it does not.
fn code(asked: &BTreeMap<String, String>) -> Result<&str, Problem> {
    if let Some(error) = asked.get("error") {
        // A word of RFC 6749, and not a text that somebody else has written for our page.
        let is_word =
            error.len() <= 64 && error.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let word = if is_word { error } else { "something that is no word" };
        return Err(Error::Unauthenticated(format!("nobody has logged in: the provider says {word}")).into());
    }
    let code = asked.get("code").map(String::as_str).filter(|code| (1..=LONGEST).contains(&code.len()));
    code.ok_or_else(|| bad("code", "is missing: the provider gives it"))
}

fn here(parts: &Parts) -> Result<Here, Problem> {
    Here::of(parts).ok_or_else(|| Problem::new("malformed", "say for which host this is (`Host`)"))
}

/// A path of this host, however a browser reads it: they take `\` for `/`, leave out what is no character, and read two of
/// them as the beginning of another host.
fn is_own_path(path: &str) -> bool {
    let nowhere = Url::parse("http://nowhere.invalid").ok();
    let origin = |url: &Url| url.origin();
    let joined = nowhere.as_ref().and_then(|base| base.join(path).ok());
    path.len() <= LONGEST
        && path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        && !path.starts_with("//")
        && joined.as_ref().map(origin) == nowhere.as_ref().map(origin)
}

fn sent_to(place: &str) -> Result<Response, Problem> {
    let place = HeaderValue::from_str(place).map_err(|_| Problem::internal("a place that is no header"))?;
    Ok((StatusCode::SEE_OTHER, [(LOCATION, place)]).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_comes_back_to_a_path_of_this_host_only() {
        for own in
            ["/", "/a/b?c=d#e", "/a//b", "/%2F%2Fevil.example", "/?to=https://evil.example", "/@evil.example"]
        {
            assert!(is_own_path(own), "{own}");
        }
        for other in [
            "",
            "a",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\/evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            " //evil.example",
            "https://evil.example/",
            "https:evil.example",
            "javascript:alert(1)",
            "/ä",
            "/a b",
            "/a\r\nset-cookie: x=y",
            &format!("/{}", "a".repeat(LONGEST)),
        ] {
            assert!(!is_own_path(other), "{other:?}");
        }
    }
}
