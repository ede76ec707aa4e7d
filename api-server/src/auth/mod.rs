//! The only place that turns a header into a `Caller`. One file per authenticator; each is asked in turn.

mod api_token;
mod breaker;
mod browser;
mod cache;
mod certificate;
mod domains;
mod external;
mod guesses;
mod header;
mod htpasswd;
mod ldap;
mod oidc;
mod operator_token;
mod people;
mod person;
mod realms;
mod sessions;
mod settings;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
mod tries;
mod trip;

use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rustls::DistinguishedName;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::kernel::Caller;
use crate::store::Store;

/// A login that has ended, as its issuer says.
pub use crate::store::EndedSession as Ended;
pub use api_token::ApiTokens;
pub use browser::{Browsers, Cookie};
pub use cache::Cache;
pub use domains::Domains;
pub use operator_token::{OperatorToken, TokenError};
pub use people::Now;
pub use realms::{Realms, RealmsConfig, RealmsFile};
pub use sessions::Sessions;
pub use settings::{AuthConfig, AuthFile};
pub use trip::{Arrived, Trip, open_hint, seal_hint};

/// What an authenticator may look at besides the header.
#[derive(Clone, Debug, Default)]
pub struct RequestDetails {
    /// `GET`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The address that the request came from; empty when it is not known.
    pub source: String,
    /// What the transport was shown, the caller's own first: they have its key, and nothing else is proven. Empty: none.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// A browser sends it for a page of another site.
    pub from_another_site: bool,
    /// It comes by the domain of this tenant.
    pub domain: Option<Arc<str>>,
    /// The cookie of a session that it shows.
    pub cookie: Option<Cookie>,
}

/// What one authenticator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// I know who this is.
    Caller(Caller),
    /// Not of my kind: ask the next one.
    NotMine,
    /// Of my kind, and not known to me: ask the next one; this text is for the caller if nobody knows it.
    Wrong(String),
    /// Of my kind, and not good. The text is for the caller.
    Refused(String),
    /// Of my kind, not good any more, and I know whose it was.
    RefusedKnown(Caller, String),
    /// Of my kind, and I cannot tell now. Whether another one would know it does not count: in doubt, nobody.
    Unavailable(String),
}

/// What authenticators begin with that are those of tenants' own realms: `realm-acme`.
pub const REALM: &str = "realm-";

/// What is told to whoever is not of the tenant whose domain it is.
pub const STRANGERS_HERE: &str =
    "nobody here knows these credentials: on this domain those of its own tenant count, and its API tokens";

/// Why there is no caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For whoever asked.
    pub reason: String,
    /// Whose credential it was, if that is known: for the audit.
    pub known: Option<Box<Caller>>,
    /// It may be good later: nothing is said against the credentials.
    pub later: bool,
}

impl From<Refusal> for Verdict {
    fn from(Refusal { reason, known, later }: Refusal) -> Verdict {
        match known {
            _ if later => Verdict::Unavailable(reason),
            Some(known) => Verdict::RefusedKnown(*known, reason),
            None => Verdict::Refused(reason),
        }
    }
}

impl Refusal {
    /// Of what is shown.
    pub fn for_good(reason: impl Into<String>) -> Refusal {
        Refusal { reason: reason.into(), known: None, later: false }
    }

    /// Of a verdict that lets nobody in.
    pub fn of(verdict: Verdict) -> Refusal {
        let refused = |reason: String| Refusal { reason, known: None, later: false };
        match verdict {
            Verdict::Refused(reason) | Verdict::Wrong(reason) => refused(reason),
            Verdict::RefusedKnown(known, reason) => {
                Refusal { known: Some(Box::new(known)), ..refused(reason) }
            }
            Verdict::Unavailable(reason) => Refusal { later: true, ..refused(reason) },
            Verdict::Caller(_) | Verdict::NotMine => {
                refused("nobody here knows these credentials".to_owned())
            }
        }
    }
}

/// Something that knows callers by their `Authorization`.
pub trait Authenticator: Send + Sync {
    /// Who is this?
    fn authenticate<'a>(
        &'a self,
        header: Option<&'a str>,
        request: &'a RequestDetails,
    ) -> BoxFuture<'a, Verdict>;

    /// Another one knows these, of which this one has said that they are wrong: it was no guess.
    fn known_elsewhere(&self, _header: Option<&str>, _request: &RequestDetails) {}

    /// Of which authorities callers should show certificates; `None`: it looks at none.
    fn wants_certificates(&self) -> Option<Vec<DistinguishedName>> {
        None
    }

    /// Whether it is asked about who comes by the domain of this tenant (`None`: by the server's own). Whom it knows is
    /// looked at once more: nobody is let in there who is not known in this tenant only.
    fn serves(&self, _domain: Option<&str>) -> bool {
        true
    }

    /// Its configured name; empty: it has none.
    fn name(&self) -> &str {
        ""
    }

    /// Which login has ended, as its issuer says by this token; `None`: logins do not end here.
    fn logout<'a>(&'a self, _token: &'a str) -> Option<BoxFuture<'a, Result<Ended, String>>> {
        None
    }

    /// How people log in, if somebody else does that.
    fn login(&self) -> Option<Login> {
        None
    }

    /// Where a browser is sent in which somebody logs in; `None`: nobody does that here.
    fn sent<'a>(&'a self, _trip: &'a Trip) -> Option<BoxFuture<'a, Result<String, String>>> {
        None
    }

    /// Who has come back from there with a code, from whom the answer says to be.
    fn back<'a>(
        &'a self,
        _trip: &'a Trip,
        _code: &'a str,
        _iss: Option<&'a str>,
    ) -> Option<BoxFuture<'a, Result<Arrived, Refusal>>> {
        None
    }

    /// Where a browser ends the login of which this is the hint, if it is ended anywhere.
    fn end_url<'a>(&'a self, _hint: &'a str) -> BoxFuture<'a, Option<String>> {
        Box::pin(std::future::ready(None))
    }

    /// Somebody whom it knew when a session of theirs began, as they are now. `None`: nobody has sessions by it.
    fn now(&self, _kept: &Caller) -> Option<Now> {
        None
    }

    /// The one for the people of this tenant, if it has one for each.
    fn of_tenant(&self, _tenant: &str) -> Option<Arc<dyn Authenticator>> {
        None
    }
}

/// Where people log in, and as which client of that place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The authenticator.
    pub name: String,
    /// An OpenID provider.
    pub issuer: String,
    /// A public client of it.
    pub client: String,
    /// The only tenant in which its people are known.
    pub tenant: Option<String>,
}

/// All authenticators, in the order in which they are asked; which logins have ended; and the domains of tenants.
#[derive(Clone, Default)]
pub struct Authenticators {
    list: Vec<Arc<dyn Authenticator>>,
    sessions: Arc<Sessions>,
    domains: Arc<Domains>,
}

// === impl Authenticators ===

impl Authenticators {
    /// These, in this order.
    pub fn new(list: Vec<Arc<dyn Authenticator>>) -> Authenticators {
        Authenticators { list, ..Authenticators::default() }
    }

    /// The same, knowing the domains of tenants.
    pub fn with_domains(self, domains: Arc<Domains>) -> Authenticators {
        Authenticators { domains, ..self }
    }

    /// The domains of tenants.
    pub fn domains(&self) -> &Arc<Domains> {
        &self.domains
    }

    fn serving(&self, domain: Option<&str>) -> impl Iterator<Item = &Arc<dyn Authenticator>> {
        self.list.iter().filter(move |one| one.serves(domain))
    }

    /// The same, knowing which logins have ended.
    pub fn with_sessions(self, sessions: Arc<Sessions>) -> Authenticators {
        Authenticators { sessions, ..self }
    }

    /// The same, letting people in by the cookies of their sessions.
    pub fn with_browsers(mut self, store: &Store) -> Authenticators {
        let browsers = Browsers::new(store.clone(), self.sessions.clone(), self.list.clone());
        self.list.insert(0, Arc::new(browsers));
        self
    }

    /// Somebody who has just shown who they are, for a session; `None`: nobody has one by that.
    pub fn now(&self, caller: &Caller) -> Option<Now> {
        people::now(&self.list, caller)
    }

    /// What has ended here is known here at once.
    pub fn tell(&self, ended: Ended) {
        self.sessions.tell(ended);
    }

    /// Of which authorities callers should show certificates on the domain of this tenant (`None`: on the server's own);
    /// `None`: nobody looks at them.
    pub fn wants_certificates(&self, domain: Option<&str>) -> Option<Vec<DistinguishedName>> {
        let wanted: Vec<_> = self.serving(domain).filter_map(|one| one.wants_certificates()).collect();
        (!wanted.is_empty()).then(|| wanted.concat())
    }

    /// Where people may log in who come by the domain of this tenant; on the server's own domain: those who are known
    /// everywhere. Whoever has a realm of their own knows where it is, and tells nobody else.
    pub fn logins(&self, domain: Option<&str>) -> Vec<Login> {
        let own =
            domain.into_iter().flat_map(|tenant| self.list.iter().filter_map(|one| one.of_tenant(tenant)));
        let own: Vec<_> = own.collect();
        let all = self.serving(domain).chain(&own).filter_map(|one| one.login());
        all.filter(|login| login.tenant.as_deref() == domain).collect()
    }

    /// Which login has ended, as this token says to the authenticator of this name; `None`: there is none.
    pub async fn logout(
        &self,
        domain: Option<&str>,
        name: &str,
        token: &str,
    ) -> Option<Result<Ended, String>> {
        Some(self.named(domain, name)?.logout(token)?.await)
    }

    /// The one of this name, if it is reached by this domain.
    fn named(&self, domain: Option<&str>, name: &str) -> Option<Arc<dyn Authenticator>> {
        let tenant = name.strip_prefix(REALM).filter(|tenant| domain.is_none_or(|domain| domain == *tenant));
        let own = tenant.and_then(|tenant| self.list.iter().find_map(|one| one.of_tenant(tenant)));
        self.serving(domain).chain(&own).find(|one| one.name() == name && !name.is_empty()).cloned()
    }

    /// Where a browser is sent that logs somebody in at the one of this name; `None`: there is none.
    pub async fn sent(
        &self,
        domain: Option<&str>,
        name: &str,
        trip: &Trip,
    ) -> Option<Result<String, String>> {
        Some(self.named(domain, name)?.sent(trip)?.await)
    }

    /// Who comes back from there, with this code, and from whom the answer says to be.
    pub async fn back(
        &self,
        domain: Option<&str>,
        name: &str,
        (trip, code, iss): (&Trip, &str, Option<&str>),
    ) -> Option<Result<Arrived, Refusal>> {
        Some(self.named(domain, name)?.back(trip, code, iss)?.await)
    }

    /// Where a browser ends the login of this hint.
    pub async fn end_url(&self, domain: Option<&str>, name: &str, hint: &str) -> Option<String> {
        self.named(domain, name)?.end_url(hint).await
    }

    /// Waits until the login of this caller has ended.
    pub fn over(&self, caller: &Caller) -> impl Future<Output = ()> + Send + 'static {
        self.sessions.clone().over(caller.clone())
    }

    /// The caller, or why there is none. The first verdict that is not "not mine" counts.
    pub async fn authenticate(
        &self,
        header: Option<&str>,
        request: &RequestDetails,
    ) -> Result<Caller, Refusal> {
        let (mut wrong, mut strangers) = (None, Vec::new());
        for one in self.serving(request.domain.as_deref()) {
            match one.authenticate(header, request).await {
                Verdict::Caller(caller) => {
                    strangers.into_iter().for_each(|one: &Arc<dyn Authenticator>| {
                        one.known_elsewhere(header, request);
                    });
                    return Ok(caller);
                }
                refused @ (Verdict::Refused(_) | Verdict::RefusedKnown(..) | Verdict::Unavailable(_)) => {
                    return Err(Refusal::of(refused));
                }
                Verdict::Wrong(reason) => {
                    strangers.push(one);
                    wrong = wrong.or(Some(reason));
                }
                Verdict::NotMine => {}
            }
        }
        let reason = match (wrong, header) {
            (Some(reason), _) => reason,
            (None, None) => "say who you are: send `Authorization: Bearer <token>`".to_owned(),
            (None, Some(_)) if request.domain.is_some() => STRANGERS_HERE.to_owned(),
            (None, Some(_)) => "nobody here knows these credentials".to_owned(),
        };
        Err(Refusal { reason, known: None, later: false })
    }
}

/// The secret in a file that not everybody can read.
pub(crate) fn secret_in(key: &str, path: &Path) -> Result<Zeroizing<String>, String> {
    use std::os::unix::fs::PermissionsExt as _;

    let failed = |error: std::io::Error| format!("`{key}`: {} cannot be read: {error}", path.display());
    let meta = std::fs::metadata(path).map_err(failed)?;
    if meta.permissions().mode() & 0o007 != 0 {
        return Err(format!("`{key}`: {} can be read by everybody: `chmod 640` it", path.display()));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
    match text.trim() {
        "" => Err(format!("`{key}`: {} is empty", path.display())),
        secret => Ok(Zeroizing::new(secret.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Always(Verdict);

    impl Authenticator for Always {
        fn authenticate<'a>(&'a self, _: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
            Box::pin(std::future::ready(self.0.clone()))
        }
    }

    #[tokio::test]
    async fn the_first_who_knows_decides() {
        let ask = async |list: Vec<Verdict>| {
            let list = list.into_iter().map(|verdict| Arc::new(Always(verdict)) as Arc<dyn Authenticator>);
            Authenticators::new(list.collect()).authenticate(Some("x"), &RequestDetails::default()).await
        };
        let known = Verdict::Caller(Caller::system());
        assert_eq!(ask(vec![Verdict::NotMine, known.clone()]).await, Ok(Caller::system()));
        let no = |known| Err(Refusal { reason: "no".into(), known, later: false });
        assert_eq!(ask(vec![Verdict::Refused("no".into()), known.clone()]).await, no(None));
        let wrong = || Verdict::Wrong("no".into());
        assert_eq!(ask(vec![wrong(), known.clone()]).await, Ok(Caller::system()));
        assert_eq!(ask(vec![wrong(), Verdict::NotMine, Verdict::Wrong("other".into())]).await, no(None));
        let away = Verdict::Unavailable("later".into());
        assert!(ask(vec![away, known]).await.unwrap_err().later);
        let whose = Verdict::RefusedKnown(Caller::system(), "no".into());
        assert_eq!(ask(vec![Verdict::NotMine, whose]).await, no(Some(Box::new(Caller::system()))));
        assert!(ask(vec![Verdict::NotMine]).await.is_err());
        assert!(ask(vec![]).await.is_err());
    }
}
