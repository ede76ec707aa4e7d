//! The two ways in which an `Authorization` is taken apart. Whoever knows neither form leaves it to the next.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

/// Longer ones are nobody's: they are not even looked at.
pub const LONGEST: usize = 16 << 10;

/// A name, and the password that is to prove it.
pub struct Basic {
    /// The name.
    pub user: String,
    /// Forgotten when this is dropped.
    pub password: Zeroizing<String>,
}

/// The token of `Bearer TOKEN`.
pub fn bearer(header: Option<&str>) -> Option<&str> {
    let (scheme, token) = header?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= LONGEST).then_some(token)
}

/// Name and password of `Basic BASE64`; `Some(None)` if it is meant to be that and cannot be read.
pub fn basic(header: Option<&str>) -> Option<Option<Basic>> {
    let (scheme, rest) = header?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    if rest.len() > LONGEST {
        return Some(None);
    }
    Some(taken_apart(rest.trim()))
}

fn taken_apart(text: &str) -> Option<Basic> {
    let bytes = Zeroizing::new(BASE64_STANDARD.decode(text).ok()?);
    let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    let good = !user.is_empty() && !user.chars().any(char::is_control) && !password.contains('\0');
    good.then(|| Basic { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_and_what_is_neither() {
        assert_eq!(bearer(Some("bearer  x ")), Some("x"));
        assert_eq!(bearer(Some("Bearer ")), None);
        assert_eq!(bearer(Some("Basic eDp5")), None);
        assert_eq!(bearer(Some(&format!("Bearer {}", "x".repeat(LONGEST + 1)))), None);
        let pair = basic(Some("Basic YW5uYTpzZTpjcmV0")).unwrap().unwrap();
        assert_eq!((pair.user.as_str(), pair.password.as_str()), ("anna", "se:cret"));
        for unreadable in ["Basic !", "Basic YW5uYQ==", "Basic OnNlY3JldA==", "basic "] {
            assert!(basic(Some(unreadable)).unwrap().is_none(), "{unreadable}");
        }
        assert!(basic(Some("Bearer x")).is_none() && basic(None).is_none());
    }
}
