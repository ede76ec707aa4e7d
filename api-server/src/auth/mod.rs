//! The only place that turns a header into a `Caller`. One file per authenticator; each is asked in turn.

mod operator_token;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::kernel::Caller;

pub use operator_token::{OperatorToken, TokenError};

/// What an authenticator may look at besides the header.
#[derive(Clone, Debug, Default)]
pub struct RequestDetails {
    /// `GET`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The address that the request came from; empty when it is not known.
    pub source: String,
}

/// What one authenticator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// I know who this is.
    Caller(Caller),
    /// Not of my kind: ask the next one.
    NotMine,
    /// Of my kind, and not good. The text is for the caller.
    Refused(String),
    /// Of my kind, not good any more, and I know whose it was.
    RefusedKnown(Caller, String),
}

/// Why there is no caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For whoever asked.
    pub reason: String,
    /// Whose credential it was, if that is known: for the audit.
    pub known: Option<Box<Caller>>,
}

/// Something that knows callers by their `Authorization`.
pub trait Authenticator: Send + Sync {
    /// Who is this?
    fn authenticate<'a>(
        &'a self,
        header: Option<&'a str>,
        request: &'a RequestDetails,
    ) -> BoxFuture<'a, Verdict>;
}

/// All authenticators, in the order in which they are asked.
#[derive(Clone, Default)]
pub struct Authenticators(Vec<Arc<dyn Authenticator>>);

// === impl Authenticators ===

impl Authenticators {
    /// These, in this order.
    pub fn new(list: Vec<Arc<dyn Authenticator>>) -> Authenticators {
        Authenticators(list)
    }

    /// The caller, or why there is none. The first verdict that is not "not mine" counts.
    pub async fn authenticate(
        &self,
        header: Option<&str>,
        request: &RequestDetails,
    ) -> Result<Caller, Refusal> {
        for one in &self.0 {
            match one.authenticate(header, request).await {
                Verdict::Caller(caller) => return Ok(caller),
                Verdict::Refused(reason) => return Err(Refusal { reason, known: None }),
                Verdict::RefusedKnown(known, reason) => {
                    return Err(Refusal { reason, known: Some(Box::new(known)) });
                }
                Verdict::NotMine => {}
            }
        }
        let reason = match header {
            None => "say who you are: send `Authorization: Bearer <token>`",
            Some(_) => "nobody here knows these credentials",
        };
        Err(Refusal { reason: reason.to_owned(), known: None })
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
        let no = |known| Err(Refusal { reason: "no".into(), known });
        assert_eq!(ask(vec![Verdict::Refused("no".into()), known]).await, no(None));
        let whose = Verdict::RefusedKnown(Caller::system(), "no".into());
        assert_eq!(ask(vec![Verdict::NotMine, whose]).await, no(Some(Box::new(Caller::system()))));
        assert!(ask(vec![Verdict::NotMine]).await.is_err());
        assert!(ask(vec![]).await.is_err());
    }
}
