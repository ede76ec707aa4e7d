//! What the transport was shown goes with each request of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::ConnectInfo;
use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Uri;
use axum::middleware::AddExtension;
use axum::{Extension, Router};
use rustls::pki_types::CertificateDer;
use tower::Layer as _;

use super::line::Line;

/// What whoever calls has shown, their own first, and has the key of. Empty: nothing.
#[derive(Clone, Debug, Default)]
pub struct Shown(pub Arc<[CertificateDer<'static>]>);

/// Whom a connection was made to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AskedFor {
    /// Nothing says so: it is not encrypted here.
    #[default]
    Unsaid,
    /// The name that was asked for when it was encrypted (SNI), in small letters; `None`: none was.
    Tls(Option<Arc<str>>),
}

/// A router of which each request knows the connection that it comes by.
pub type OfLine = AddExtension<
    AddExtension<AddExtension<AddExtension<Router, Line>, Shown>, AskedFor>,
    ConnectInfo<SocketAddr>,
>;

/// The router, for a connection from there to this name on which this was shown.
pub fn on_line(router: Router, peer: SocketAddr, asked: AskedFor, shown: Shown, line: Line) -> OfLine {
    let router = Extension(shown).layer(Extension(line).layer(router));
    Extension(ConnectInfo(peer)).layer(Extension(asked).layer(router))
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
