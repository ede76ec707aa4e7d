//! API tokens: `Authorization: Bearer rzt_...`. Whether there is such a one, whose it is and what it may do is the
//! store's to say, where it is kept as a hash; here it is only recognised.

use futures_util::future::BoxFuture;

use super::{Authenticator, RequestDetails, Verdict};
use crate::kernel::Caller;
use crate::store::{TOKEN_PREFIX, token_hash};

/// Recognises API tokens.
pub struct ApiTokens;

impl Authenticator for ApiTokens {
    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        Box::pin(std::future::ready(verdict(header)))
    }
}

fn verdict(header: Option<&str>) -> Verdict {
    let token = header.and_then(|header| header.split_once(' '));
    let token =
        token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    match token.filter(|token| token.starts_with(TOKEN_PREFIX)) {
        Some(token) => Verdict::Caller(Caller {
            credential: "token".to_owned(),
            token: Some(token_hash(token)),
            ..Caller::default()
        }),
        None => Verdict::NotMine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_recognised_and_says_nothing_of_itself() {
        let Verdict::Caller(caller) = verdict(Some("bearer rzt_secret")) else { panic!() };
        assert!(!caller.operator && caller.access.is_none());
        assert!(!format!("{caller:?}").contains("rzt_secret"), "only its hash goes on");
        for other in [None, Some("Bearer rzo1.x"), Some("Basic rzt_x"), Some("rzt_x"), Some("Bearer x rzt_")]
        {
            assert_eq!(verdict(other), Verdict::NotMine, "{other:?}");
        }
    }
}
