//! Cookies of sessions: what they are called, how they are set, and for which requests they count. A browser sends them by
//! itself, whoever has made it ask: so it must be the page's own origin that asks, and say so.

use axum::http::header::{COOKIE, HOST, ORIGIN, SET_COOKIE, UPGRADE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::domain::bare;
use super::shown::AskedFor;
use crate::auth::Cookie;
use crate::store::browser_hash;

/// What a page shows that could read the answer by which its session began: no page of another site could.
pub const CSRF: &str = "x-rhyzome-csrf";
/// The cookie of a session, where it is sent by encrypted connections only; browsers take one of such a name from nobody
/// but this very host.
pub const SECURE: &str = "__Host-rhyzome";
/// The same on the machine itself, without encryption.
pub const PLAIN: &str = "rhyzome";
/// What is added to both for a login that is not done.
const LOGIN: &str = "-login";
/// Longer ones are nobody's.
const LONGEST: usize = 256;

const ELSEWHERE: &str =
    "a page of another site has asked for this: the cookie of a session does not count there";
const UNSAID: &str = "the cookie of a session counts where a browser says which page asks: `Sec-Fetch-Site: same-origin`, or `Origin`";
const NO_ORIGIN: &str =
    "the cookie of a session counts for what changes something, and for websockets, with a matching `Origin`";
const NO_CSRF: &str = "the cookie of a session counts for what changes something with the `csrf` of `GET /v1/session` in `X-Rhyzome-CSRF`";
const TWO: &str = "there are two cookies of sessions: delete them, and log in again";

/// Where a browser is that asks for this: its pages have this origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// `https://api.example.com`
    pub origin: String,
    /// Its cookies are sent by encrypted connections only.
    is_secure: bool,
}

/// Which of the two cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Of a session: pages of other sites do not send it.
    Session,
    /// Of a login that is not done: the provider's pages lead to where it is sent.
    Login,
}

impl Here {
    /// As this request says; `None`: it does not say for which host it is. Without encryption only this machine itself is
    /// served: a name that is not this machine's is that of something in front of us, which ends TLS.
    pub fn of(parts: &Parts) -> Option<Here> {
        let authority = parts.uri.authority().map(|authority| authority.as_str());
        let host = authority.or_else(|| parts.headers.get(HOST)?.to_str().ok())?.to_ascii_lowercase();
        let is_tls = matches!(parts.extensions.get(), Some(AskedFor::Tls(_)));
        let is_secure = is_tls || !is_loopback(&bare(&host));
        let scheme = if is_secure { "https" } else { "http" };
        Some(Here { origin: format!("{scheme}://{host}"), is_secure })
    }

    fn name(&self, which: Which) -> String {
        let name = if self.is_secure { SECURE } else { PLAIN };
        match which {
            Which::Session => name.to_owned(),
            Which::Login => format!("{name}{LOGIN}"),
        }
    }

    /// Sets it; `None`: takes it away.
    pub fn set(&self, response: &mut Response, which: Which, secret: Option<&str>) {
        let secure = if self.is_secure { "; Secure" } else { "" };
        let site = if which == Which::Session { "Strict" } else { "Lax" };
        let age = match (which, secret) {
            (_, None) => "; Max-Age=0",
            (Which::Login, _) => "; Max-Age=600",
            // It ends with the browser, or sooner.
            (Which::Session, _) => "",
        };
        let name = self.name(which);
        let text =
            format!("{name}={}; Path=/; HttpOnly; SameSite={site}{secure}{age}", secret.unwrap_or_default());
        if let Ok(mut value) = HeaderValue::from_str(&text) {
            value.set_sensitive(true);
            response.headers_mut().append(SET_COOKIE, value);
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// What is in the cookie: nothing, or it is there once, or more than once.
pub fn secret(parts: &Parts, which: Which) -> Result<Option<&str>, &'static str> {
    let Some(here) = Here::of(parts) else { return Ok(None) };
    let name = here.name(which);
    let texts = parts.headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut found = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(TWO),
        (found, None) => Ok(found.filter(|secret| (1..=LONGEST).contains(&secret.len()))),
    }
}

/// The cookie of a session that is shown, and whether it counts for what is asked.
pub fn shown(parts: &Parts) -> Option<Cookie> {
    match secret(parts, Which::Session) {
        Ok(None) => None,
        Ok(Some(secret)) => {
            let refused = judge(&parts.method, &parts.headers, &Here::of(parts)?, &csrf(secret)).err();
            Some(Cookie { hash: browser_hash(secret), refused, is_look: false })
        }
        Err(why) => Some(Cookie { hash: String::new(), refused: Some(why), is_look: false }),
    }
}

/// What `X-Rhyzome-CSRF` must be, of the session with this secret. It tells nothing of that.
pub fn csrf(secret: &str) -> String {
    let mut hash = Sha256::new();
    hash.update("rhyzome csrf ");
    hash.update(secret);
    rhyzome_pki::hex(&hash.finalize())
}

/// Whether a page of another site has asked for this, as far as the browser says.
pub fn is_from_elsewhere(headers: &HeaderMap, here: &Here) -> bool {
    let mut origins = headers.get_all(ORIGIN).into_iter();
    let (origin, second) = (origins.next(), origins.next());
    let site = headers.get("sec-fetch-site");
    second.is_some()
        || origin.is_some_and(|origin| origin.as_bytes() != here.origin.as_bytes())
        || site.is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"))
}

fn judge(method: &Method, headers: &HeaderMap, here: &Here, csrf: &str) -> Result<(), &'static str> {
    if is_from_elsewhere(headers, here) {
        return Err(ELSEWHERE);
    }
    let has_origin = headers.contains_key(ORIGIN);
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        Some(b"same-origin") => {}
        None if has_origin => {}
        // Nobody's page has asked: something else follows links of anybody's.
        _ => return Err(UNSAID),
    }
    let is_safe = matches!(*method, Method::GET | Method::HEAD);
    if (!is_safe || headers.contains_key(UPGRADE)) && !has_origin {
        return Err(NO_ORIGIN);
    }
    let given = headers.get(CSRF).map(HeaderValue::as_bytes).unwrap_or_default();
    // Of hashes it does not matter how much of them is the same.
    if !is_safe && Sha256::digest(given) != Sha256::digest(csrf) {
        return Err(NO_CSRF);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn parts(host: &str, tls: bool, cookies: &[&str]) -> Parts {
        let mut request = Request::builder().uri("/v1").header("host", host);
        for cookie in cookies {
            request = request.header("cookie", *cookie);
        }
        if tls {
            request = request.extension(AskedFor::Tls(None));
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn without_encryption_only_this_machine_has_a_plain_cookie() {
        for (host, tls, origin, name) in [
            ("api.example", true, "https://api.example", SECURE),
            ("API.example:8443", true, "https://api.example:8443", SECURE),
            ("127.0.0.1:8080", true, "https://127.0.0.1:8080", SECURE),
            ("api.example", false, "https://api.example", SECURE),
            ("192.0.2.1", false, "https://192.0.2.1", SECURE),
            ("127.0.0.1.example", false, "https://127.0.0.1.example", SECURE),
            ("127.0.0.1:8080", false, "http://127.0.0.1:8080", PLAIN),
            ("localhost", false, "http://localhost", PLAIN),
            ("[::1]:8080", false, "http://[::1]:8080", PLAIN),
        ] {
            let here = Here::of(&parts(host, tls, &[])).unwrap();
            assert_eq!((here.origin.as_str(), here.name(Which::Session).as_str()), (origin, name), "{host}");
            let mut response = Response::new(axum::body::Body::empty());
            here.set(&mut response, Which::Session, Some("x"));
            let set = response.headers()["set-cookie"].to_str().unwrap();
            assert_eq!(set.contains("; Secure"), name == SECURE, "{set}");
            assert!(set.starts_with(&format!("{name}=x; Path=/; HttpOnly; SameSite=Strict")), "{set}");
        }
    }

    #[test]
    fn a_cookie_of_another_name_is_none() {
        let ask = |host: &str, cookies: &[&str]| {
            secret(&parts(host, false, cookies), Which::Session).map(|found| found.map(str::to_owned))
        };
        assert_eq!(ask("api.example", &["a=b; __Host-rhyzome=x", "c=d"]), Ok(Some("x".into())));
        assert_eq!(ask("localhost", &["rhyzome=x; rhyzome-login=y"]), Ok(Some("x".into())));
        for none in ["rhyzome=x", "__host-rhyzome=x", "__Host-rhyzome=", "__Host-rhyzome-login=x", ""] {
            assert_eq!(ask("api.example", &[none]), Ok(None), "{none}");
        }
        for two in [&["__Host-rhyzome=x; __Host-rhyzome=y"][..], &["__Host-rhyzome=x", "__Host-rhyzome=x"]] {
            assert_eq!(ask("api.example", two), Err(TWO));
        }
    }
}
