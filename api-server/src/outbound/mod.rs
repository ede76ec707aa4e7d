//! The one client with which the API server calls others: whatever a user may have it call goes through here.
//!
//! An address is judged where it is connected to, after the name was resolved and without resolving it again, so
//! that no name can say one thing to the check and another to the connection. Redirects are followed by hand,
//! each as a call of its own. There is an end to time and size.

mod courier;
mod ranges;
#[cfg(test)]
mod tests;

use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Certificate, Client, Method, Response, Url, redirect};
use tokio::net::TcpStream;

pub use courier::{Courier, Message};
pub use ranges::{Rules, own_addresses};

/// How much a call may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until the end of the answer.
    pub time: Duration,
    /// Of the answer.
    pub bytes: usize,
    /// For GET; nothing else follows any.
    pub redirects: usize,
}

/// Turns names into addresses.
pub trait Names: Send + Sync {
    /// All addresses of this name, now.
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, std::io::Result<Vec<IpAddr>>>;
}

/// The client.
#[derive(Clone)]
pub struct Outbound {
    client: Client,
    names: Arc<dyn Names>,
    rules: Arc<Rules>,
    limits: Limits,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Of the last call.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

/// Why a call was not made, or not answered. The text is for users: it tells nothing of what is behind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It is no URL that is called.
    #[error("`{0}` is not called: give an http:// or https:// URL with a host and without user and password")]
    Url(String),
    /// It leads where nobody is called.
    #[error("`{host}` is not called: {why}; an operator may allow it")]
    Refused {
        /// As the URL names it.
        host: String,
        /// Where it leads.
        why: &'static str,
    },
    /// Nobody knows this name.
    #[error("`{0}` has no address")]
    Unresolved(String),
    /// It did not end in time.
    #[error("no answer in {} s", .0.as_secs())]
    Late(Duration),
    /// It was too large.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    /// It went on and on.
    #[error("more than {0} redirects")]
    Redirects(usize),
    /// The connection failed.
    #[error("`{0}` cannot be reached")]
    Unreachable(String),
}

/// The resolver of the system.
pub struct SystemNames;

/// Said by the resolver to the client, and found again in what the client says of it.
#[derive(Debug, thiserror::Error)]
enum Told {
    #[error("{0}")]
    Refused(&'static str),
    #[error("no address")]
    Unresolved,
}

/// Resolves, and lets only those through that may be called.
struct Checked {
    names: Arc<dyn Names>,
    rules: Arc<Rules>,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Limits {
        Limits { time: Duration::from_secs(10), bytes: 1 << 20, redirects: 5 }
    }
}

// === impl Names ===

impl Names for SystemNames {
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, std::io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
        })
    }
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (names, rules) = (self.names.clone(), self.rules.clone());
        Box::pin(async move {
            let all = names.addresses(name.as_str()).await.map_err(|_| Told::Unresolved)?;
            if all.is_empty() {
                return Err(Told::Unresolved.into());
            }
            // One bad address spoils the name: whoever mixes them means no good.
            if let Some(why) = all.iter().find_map(|address| rules.refuse(*address)) {
                return Err(Told::Refused(why).into());
            }
            let addresses: Addrs = Box::new(all.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

// === impl Outbound ===

impl Outbound {
    /// A client under these rules.
    pub fn new(rules: Rules, limits: Limits, names: Arc<dyn Names>) -> Result<Outbound, reqwest::Error> {
        Outbound::believing(rules, limits, names, Vec::new())
    }

    /// As `new`; believes these authorities besides those of the machine.
    pub fn believing(
        rules: Rules,
        limits: Limits,
        names: Arc<dyn Names>,
        authorities: Vec<Certificate>,
    ) -> Result<Outbound, reqwest::Error> {
        // Fails only when one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let rules = Arc::new(rules);
        let builder = || {
            Client::builder()
                // Proxies come from the environment, which is read once, by the configuration.
                .no_proxy()
                .redirect(redirect::Policy::none())
                .referer(false)
                .user_agent(concat!("rhyzome/", env!("CARGO_PKG_VERSION")))
                .timeout(limits.time)
                .connect_timeout(limits.time)
                .dns_resolver(Checked { names: names.clone(), rules: rules.clone() })
        };
        // A machine that trusts no authority at all can still call what is not encrypted.
        let client = builder().tls_certs_merge(authorities.clone()).build();
        let client = client.or_else(|_| builder().tls_certs_only(authorities).build())?;
        Ok(Outbound { client, names, rules, limits })
    }

    /// Gets what is there, following redirects that lead nowhere else than a call may.
    pub async fn get(&self, url: &str) -> Result<Answered, CallError> {
        let mut url = judged(&self.rules, url)?;
        for _ in 0..=self.limits.redirects {
            let response = self.send(Method::GET, &url, HeaderMap::new(), Vec::new()).await?;
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let Some(location) = location.filter(|_| response.status().is_redirection()) else {
                return self.read(&url, response).await;
            };
            let next = url.join(location).map_err(|_| CallError::Url(location.to_owned()))?;
            url = judged(&self.rules, next.as_str())?;
        }
        Err(CallError::Redirects(self.limits.redirects))
    }

    /// Sends this there: the status that was answered. A redirect is an answer like any other. What else was answered is
    /// not read: who took a message has taken it, however much is said of it.
    pub async fn post(&self, url: &str, headers: HeaderMap, body: Vec<u8>) -> Result<u16, CallError> {
        let url = judged(&self.rules, url)?;
        Ok(self.send(Method::POST, &url, headers, body).await?.status().as_u16())
    }

    /// Calls with these headers and this body, and reads what is answered. A redirect is an answer like any other: headers
    /// that prove something are shown to nobody else.
    pub async fn call(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answered, CallError> {
        let url = judged(&self.rules, url)?;
        let response = self.send(method, &url, headers, body).await?;
        self.read(&url, response).await
    }

    /// Why nobody is called there, as far as it can be told without resolving a name.
    pub fn judge(&self, url: &str) -> Result<(), CallError> {
        judged(&self.rules, url).map(drop)
    }

    /// A connection for what is not HTTP, under the same rules: to an address that was judged, of a name that was resolved
    /// once.
    pub async fn tcp(&self, host: &str, port: u16) -> Result<TcpStream, CallError> {
        let unresolved = || CallError::Unresolved(host.to_owned());
        let all = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.names.addresses(host).await.map_err(|_| unresolved())?,
        };
        if all.is_empty() {
            return Err(unresolved());
        }
        if let Some(why) = all.iter().find_map(|address| self.rules.refuse(*address)) {
            return Err(CallError::Refused { host: host.to_owned(), why });
        }
        let all: Vec<SocketAddr> = all.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        match tokio::time::timeout(self.limits.time, TcpStream::connect(&all[..])).await {
            Err(_) => Err(CallError::Late(self.limits.time)),
            Ok(Err(_)) => Err(CallError::Unreachable(host.to_owned())),
            Ok(Ok(stream)) => Ok(stream),
        }
    }

    /// Why this host is not called, if it is an address.
    pub fn judge_host(&self, host: &str) -> Result<(), CallError> {
        let why = host.parse::<IpAddr>().ok().and_then(|address| self.rules.refuse(address));
        why.map_or(Ok(()), |why| Err(CallError::Refused { host: host.to_owned(), why }))
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Response, CallError> {
        let request = self.client.request(method, url.clone()).headers(headers).body(body);
        request.send().await.map_err(|error| self.told(url, &error))
    }

    async fn read(&self, url: &Url, mut response: Response) -> Result<Answered, CallError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.told(url, &error))? {
            if body.len() + chunk.len() > self.limits.bytes {
                return Err(CallError::TooLarge(self.limits.bytes));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answered { status: response.status().as_u16(), body })
    }

    fn told(&self, url: &Url, error: &reqwest::Error) -> CallError {
        let host = url.host_str().unwrap_or_default().to_owned();
        let mut source = error.source();
        while let Some(inner) = source {
            match inner.downcast_ref::<Told>() {
                Some(Told::Refused(why)) => return CallError::Refused { host, why },
                Some(Told::Unresolved) => return CallError::Unresolved(host),
                None => source = inner.source(),
            }
        }
        if error.is_timeout() { CallError::Late(self.limits.time) } else { CallError::Unreachable(host) }
    }
}

/// A URL that may be called, as far as it can be told before its name is resolved.
fn judged(rules: &Rules, text: &str) -> Result<Url, CallError> {
    let bad = || CallError::Url(text.chars().take(200).collect());
    let url: Url = text.parse().map_err(|_| bad())?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(bad)?;
    if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
        return Err(bad());
    }
    // What stands for an address (decimal, octal, hexadecimal, short) has become one by now; it is resolved
    // by nobody, so it is judged here.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>()
        && let Some(why) = rules.refuse(address)
    {
        return Err(CallError::Refused { host: host.to_owned(), why });
    }
    Ok(url)
}
