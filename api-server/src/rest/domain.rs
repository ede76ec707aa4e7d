//! By which domain a request comes: the server's own, or that of one tenant, which serves that tenant only.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::HOST;
use axum::http::request::Parts;

use super::problem::Problem;
use super::shown::AskedFor;
use crate::auth::Domains;

/// The tenant whose domain it is; `None`: it is the server's own.
#[derive(Clone, Debug, Default)]
pub struct Domain(pub Option<Arc<str>>);

impl Domain {
    /// The tenant's name.
    pub fn tenant(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl<S: Sync> FromRequestParts<S> for Domain {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Domain, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

/// By which one this request comes. On an encrypted connection both must say it: the name for which it was made, and the
/// request. So nobody is served as somebody's whom they have not proven to be.
pub fn of(request: &Request, domains: &Domains) -> Result<Domain, Problem> {
    let host = host(request)?;
    let tenant = host.as_deref().and_then(|host| domains.of(host));
    if let Some(AskedFor::Tls(name)) = request.extensions().get() {
        let other = name.as_deref().and_then(|name| domains.of(name));
        if (tenant.is_some() || other.is_some()) && name.as_deref() != host.as_deref() {
            let made_for = name.as_deref().unwrap_or("no name");
            let detail = format!(
                "this connection was made for {made_for}: connect again, to the name that you ask for"
            );
            return Err(Problem::new("misdirected", detail));
        }
    }
    Ok(Domain(tenant.map(|one| one.tenant.as_str().into())))
}

/// The name that a request is for, without its port, in small letters; `None`: it says none.
fn host(request: &Request) -> Result<Option<String>, Problem> {
    let malformed = |detail: &str| Err(Problem::new("malformed", detail));
    let mut said = request.headers().get_all(HOST).iter();
    let (header, second) = (said.next(), said.next());
    if second.is_some() {
        return malformed("there are two `Host`");
    }
    let header = match header.map(|header| header.to_str()) {
        Some(Err(_)) => return malformed("`Host` is no name"),
        Some(Ok(text)) => Some(text),
        None => None,
    };
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let (one, other) = (authority.map(bare), header.map(bare));
    match (one, other) {
        (Some(one), Some(other)) if one != other => malformed("`Host` says another name than the request"),
        (one, other) => Ok(one.or(other)),
    }
}

/// A name without its port, in small letters.
pub(super) fn bare(authority: &str) -> String {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // An address of IPv6 has colons of its own.
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => host,
    };
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn said(uri: &str, hosts: &[&str]) -> Result<Option<String>, ()> {
        let mut request = axum::http::Request::builder().uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        host(&request.body(Body::empty()).unwrap()).map_err(|_| ())
    }

    #[test]
    fn a_name_is_said_in_many_ways() {
        for host in ["api.acme.example", "API.Acme.Example:443", "api.acme.example.", "api.acme.example.:80"]
        {
            assert_eq!(said("/v1", &[host]), Ok(Some("api.acme.example".into())), "{host}");
            let uri = format!("http://{host}/v1");
            assert_eq!(said(&uri, &[]), Ok(Some("api.acme.example".into())), "{host}");
            assert_eq!(said(&uri, &["api.acme.example"]), Ok(Some("api.acme.example".into())), "{host}");
            assert_eq!(said(&uri, &["b.example"]), Err(()), "{host}");
        }
        assert_eq!(said("/v1", &[]), Ok(None));
        assert_eq!(said("/v1", &["[::1]:80"]), Ok(Some("[::1]".into())));
        assert_eq!(said("/v1", &["a.example", "a.example"]), Err(()));
    }
}
