//! What the transport was shown goes with each request of a connection.

use std::sync::Arc;

use axum::Extension;
use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Uri;
use axum::middleware::AddExtension;
use rustls::pki_types::CertificateDer;
use tower::Layer;

/// What whoever calls has shown, their own first, and has the key of. Empty: nothing.
#[derive(Clone, Debug, Default)]
pub struct Shown(pub Arc<[CertificateDer<'static>]>);

/// A service of which each request knows what was shown.
pub type Showing<S> = AddExtension<S, Shown>;

impl Shown {
    /// This, with each request to the service.
    pub fn with<S>(self, service: S) -> Showing<S> {
        Extension(self).layer(service)
    }
}

/// Whether a browser sends this for a page of another site: what it shows by itself does not count then.
pub fn from_another_site(headers: &HeaderMap, uri: &Uri) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text("sec-fetch-site") {
        return !matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text(ORIGIN.as_str()) else { return false };
    let here = text(HOST.as_str()).or(uri.authority().map(|authority| authority.as_str()));
    origin.split_once("://").map(|(_, origin)| origin) != here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_site_is_known() {
        let ask = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            from_another_site(&headers, &Uri::from_static("/v1"))
        };
        let host = ("host", "api.example");
        for here in [
            &[][..],
            &[host],
            &[host, ("origin", "https://api.example")],
            &[host, ("sec-fetch-site", "same-origin")],
            &[host, ("sec-fetch-site", "none")],
        ] {
            assert!(!ask(here), "{here:?}");
        }
        for elsewhere in [
            &[host, ("origin", "https://evil.example")][..],
            &[host, ("origin", "null")],
            &[("origin", "https://api.example")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site"), ("origin", "https://api.example")],
        ] {
            assert!(ask(elsewhere), "{elsewhere:?}");
        }
    }
}
