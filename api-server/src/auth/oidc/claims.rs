//! What a token says, and whether it counts here: pure, so that every case is a test of microseconds.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::auth::person::Person;
use crate::kernel::Timestamp;

/// How far clocks may differ, in seconds.
pub const SKEW: i64 = 30;
/// No token is good for longer than this, in seconds: for so long it is remembered which sessions have ended.
pub const LONGEST_LIFE: i64 = 24 * 3600;

/// What tokens must say.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// Who must have issued it.
    pub issuer: String,
    /// Whom it must be for: one of these.
    pub audiences: BTreeSet<String>,
    /// Who must have got it: one of these; empty: anybody whom the issuer gives one for us.
    pub clients: BTreeSet<String>,
    /// The claim that is the name.
    pub name_claim: String,
    /// The claims that are groups.
    pub group_claims: Vec<String>,
    /// A token that does not say that it is an access token is one all the same.
    pub untyped: bool,
}

/// A token that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is.
    pub person: Person,
    /// Until when it is good.
    pub until: Timestamp,
}

impl Demands {
    /// Whose token it is. `typ`: as its header says; its signature was looked at before.
    pub fn check(&self, typ: Option<&str>, claims: &Value, now: Timestamp) -> Result<Token, String> {
        self.kind(typ, claims)?;
        if claims["iss"].as_str() != Some(&self.issuer) {
            return Err("this token was issued by somebody else".into());
        }
        if !self.is_for_us(claims) {
            return Err("this token is for somebody else: its `aud` does not name this API".into());
        }
        if !self.clients.is_empty() && !self.client_is_known(claims) {
            return Err("this token was given to a client that is not known here (`azp`)".into());
        }
        self.told(claims, now)
    }

    /// What the issuer itself says of an opaque token.
    pub fn introspected(&self, said: &Value, now: Timestamp) -> Result<Token, String> {
        if said.get("iss").is_some_and(|iss| iss.as_str() != Some(&self.issuer)) {
            return Err("this token was issued by somebody else".into());
        }
        if said["token_type"].as_str().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err("this token is not one to be shown alone".into());
        }
        if !self.is_for_us(said) && !self.client_is_known(said) {
            return Err("this token is for somebody else".into());
        }
        if !self.clients.is_empty() && !self.client_is_known(said) {
            return Err("this token was given to a client that is not known here".into());
        }
        self.told(said, now)
    }

    /// An access token says so: by its header (RFC 9068), or as Keycloak does by a claim. Everything else that an issuer
    /// signs (identity, refresh, logout) is not to be shown to an API.
    fn kind(&self, typ: Option<&str>, claims: &Value) -> Result<(), String> {
        let typ = typ.unwrap_or("JWT").to_ascii_lowercase();
        let claimed = claims["typ"].as_str();
        let bound = claims.get("cnf").is_some();
        let good = match typ.trim_start_matches("application/") {
            "at+jwt" => claimed.is_none_or(|claimed| claimed == "Bearer"),
            "jwt" => match claimed {
                Some(claimed) => claimed == "Bearer",
                None => self.untyped && !is_identity(claims),
            },
            _ => false,
        };
        match (good, bound) {
            (true, false) => Ok(()),
            (true, true) => Err("this token is bound to a key (`cnf`), which cannot be proven here".into()),
            (false, _) => {
                Err("this is no access token: send the `access_token`, not the `id_token` or another".into())
            }
        }
    }

    fn is_for_us(&self, claims: &Value) -> bool {
        strings(&claims["aud"]).any(|audience| self.audiences.contains(audience))
    }

    fn client_is_known(&self, claims: &Value) -> bool {
        let client = claims.get("azp").or_else(|| claims.get("client_id"));
        client.and_then(Value::as_str).is_some_and(|client| self.clients.contains(client))
    }

    fn told(&self, claims: &Value, now: Timestamp) -> Result<Token, String> {
        let until = seconds(claims, "exp")?.ok_or("this token does not say when it ends (`exp`)")?;
        let issued = seconds(claims, "iat")?;
        if until.plus_seconds(SKEW) <= now {
            return Err("this token has expired: log in again, or refresh it".into());
        }
        if until > now.plus_seconds(LONGEST_LIFE + SKEW) {
            return Err("this token is good for more than a day: its issuer must give shorter ones".into());
        }
        let early = |moment: Option<Timestamp>| moment.is_some_and(|moment| moment > now.plus_seconds(SKEW));
        if early(issued) || early(seconds(claims, "nbf")?) {
            return Err("this token is not good yet: compare the clocks".into());
        }
        let text = |name: &str| claims[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let subject = text("sub").ok_or("this token does not say whose it is (`sub`)")?;
        let name = text(&self.name_claim).or_else(|| text("username")).unwrap_or_else(|| subject.clone());
        let groups: BTreeSet<&str> =
            self.group_claims.iter().flat_map(|claim| strings(at(claims, claim))).collect();
        let person = Person {
            name,
            subject,
            groups: groups.into_iter().map(str::to_owned).collect(),
            session: text("sid").or_else(|| text("session_state")),
            issued,
            credential: "token",
        };
        Ok(Token { person, until })
    }
}

/// What only identity tokens have.
fn is_identity(claims: &Value) -> bool {
    ["nonce", "at_hash", "c_hash", "auth_time", "events"].iter().any(|claim| claims.get(claim).is_some())
}

/// A time in whole seconds, or with a fraction.
pub fn seconds(claims: &Value, name: &str) -> Result<Option<Timestamp>, String> {
    let bad = || format!("`{name}` of this token is no time");
    let Some(value) = claims.get(name) else { return Ok(None) };
    #[expect(clippy::cast_possible_truncation, reason = "looked at just before")]
    let whole = match (value.as_i64(), value.as_f64()) {
        (Some(whole), _) => whole,
        (None, Some(broken)) if broken.abs() < 1e11 => broken as i64,
        _ => return Err(bad()),
    };
    if !(0..100_000_000_000).contains(&whole) {
        return Err(bad());
    }
    Ok(Some(Timestamp::default().plus_seconds(whole)))
}

/// A claim by its name, or by a path: `realm_access.roles`.
fn at<'a>(claims: &'a Value, path: &str) -> &'a Value {
    claims.get(path).unwrap_or_else(|| path.split('.').fold(claims, |value, part| &value[part]))
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    let many = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    value.as_str().into_iter().chain(many)
}
