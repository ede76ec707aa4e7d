//! The issuer says that a login has ended (OpenID Connect Back-Channel Logout 1.0).

use serde_json::Value;

use super::claims::{LONGEST_LIFE, SKEW, seconds};
use super::{Fault, Oidc, Signed};
use crate::auth::Ended;
use crate::auth::person::bad;

/// A logout that was said longer ago than this, in seconds, is not heard: it was recorded and is played again.
const FRESH: i64 = 300;
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

impl Oidc {
    /// Which login has ended, by a token that only the issuer can make.
    pub(super) async fn ended(&self, token: &str) -> Result<Ended, String> {
        let signed = Signed::parse(token).ok_or("`logout_token` is no signed token")?;
        if signed.claims["iss"].as_str() != Some(&self.demands.issuer) {
            return Err("`logout_token` was issued by somebody else".into());
        }
        self.verified(&signed).await.map_err(|fault| match fault {
            Fault::Bad(why) => why,
            Fault::Away => "the issuer cannot be asked for its keys now: say it again".into(),
        })?;
        self.says_so(&signed)
    }

    fn says_so(&self, signed: &Signed<'_>) -> Result<Ended, String> {
        let claims = &signed.claims;
        let typ = signed.typ().unwrap_or("JWT").to_ascii_lowercase();
        let typed = ["logout+jwt", "application/logout+jwt", "jwt"].contains(&typ.as_str());
        if !typed || !claims["events"][EVENT].is_object() || claims.get("nonce").is_some() {
            return Err("`logout_token` is another kind of token".into());
        }
        let text = |name: &str| claims[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        text("jti").ok_or("`logout_token` has no `jti`")?;
        if !self.is_told_to_us(claims) {
            return Err("`logout_token` is for somebody else".into());
        }
        let now = self.env.now();
        let issued =
            seconds(claims, "iat")?.ok_or("`logout_token` does not say when it was issued (`iat`)")?;
        let until = seconds(claims, "exp")?;
        if issued > now.plus_seconds(SKEW)
            || issued < now.plus_seconds(-FRESH)
            || until.is_some_and(|until| until.plus_seconds(SKEW) <= now)
        {
            return Err("`logout_token` is too old, or of the future: compare the clocks".into());
        }
        // They are kept, compared and shown: nothing else than what a login can have had.
        if let Some(name) = ["sid", "sub"].into_iter().find(|name| text(name).is_some_and(|word| bad(&word)))
        {
            return Err(format!("`{name}` of `logout_token` is too long, or has control characters"));
        }
        let (session, subject) = match (text("sid"), text("sub")) {
            (Some(session), _) => (session, String::new()),
            (None, Some(subject)) => (String::new(), subject),
            (None, None) => {
                return Err("`logout_token` says neither which session nor whose (`sid`, `sub`)".into());
            }
        };
        Ok(Ended {
            authenticator: self.terms.authenticator.clone(),
            session,
            subject,
            // Times in tokens are whole seconds: what was issued within this one is meant too, and nothing later.
            at: issued,
            told_at: now,
            until: now.plus_seconds(LONGEST_LIFE + 2 * SKEW),
        })
    }

    /// The audience of a logout is the client that people logged in with, which is one of ours.
    fn is_told_to_us(&self, claims: &Value) -> bool {
        let ours = |audience: &str| {
            self.demands.audiences.contains(audience)
                || self.demands.clients.contains(audience)
                || self.login_client.as_deref() == Some(audience)
        };
        match &claims["aud"] {
            Value::String(one) => ours(one),
            Value::Array(many) => many.iter().filter_map(Value::as_str).any(ours),
            _ => false,
        }
    }
}
