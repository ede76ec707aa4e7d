//! The admin API of Keycloak, as far as it is needed: a realm is made by one call with all that is in it, so that there
//! is all of it or nothing. It bears the id of its tenant: whatever was answered, or not, looking tells whether it is ours.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::auth::{REALM, RealmsConfig, secret_in};
use crate::outbound::{Answered, Outbound};
use crate::store::{RealmTold, RealmWork};

/// The attribute of a realm that says whose it is.
const TENANT: &str = "rhyzome.tenant";

/// Where realms are made.
pub struct Keycloak {
    config: RealmsConfig,
    client: String,
    secret: Zeroizing<String>,
    outbound: Arc<Outbound>,
}

/// Why something came to nothing: for good, or for now.
type Outcome<T> = Result<T, RealmTold>;

fn refused<T>(why: impl Into<String>) -> Outcome<T> {
    Err(RealmTold::Refused(why.into()))
}

impl Keycloak {
    /// The one of this configuration; `None`: none is to be made there. Or what is wrong with it.
    pub fn new(config: &RealmsConfig, outbound: Arc<Outbound>) -> Result<Option<Keycloak>, String> {
        let Some((client, file)) = &config.maker else { return Ok(None) };
        outbound.judge(&config.url).map_err(|error| format!("`keycloak.url`: {error}"))?;
        let secret = secret_in("keycloak.client_secret_file", file)?;
        Ok(Some(Keycloak { config: config.clone(), client: client.clone(), secret, outbound }))
    }

    /// Makes a realm, unless it has been.
    pub async fn make(&self, work: &RealmWork) -> RealmTold {
        self.made(work).await.unwrap_or_else(|told| told)
    }

    /// Deletes a realm that is ours, unless it has been.
    pub async fn delete(&self, work: &RealmWork) -> RealmTold {
        self.deleted(work).await.unwrap_or_else(|told| told)
    }

    async fn made(&self, work: &RealmWork) -> Outcome<RealmTold> {
        let token = self.token().await?;
        let body = self.realm(work).to_string().into_bytes();
        let answered = self.admin(Method::POST, "", &token, body).await?;
        match answered.status {
            201 => Ok(RealmTold::Done),
            // There is one: by a call of ours whose answer nobody has heard, or by somebody else.
            409 => match self.whose(work).await? {
                Some(true) => Ok(RealmTold::Done),
                Some(false) => refused(format!(
                    "there is a realm `{0}` at the identity provider that was not made for this tenant: say another \
                     `realm`, or take `{0}` as it is by leaving out `make_realm`",
                    work.realm
                )),
                None => Err(RealmTold::Waits(
                    "the identity provider says that the realm is there, and is not".into(),
                )),
            },
            _ => self.unexpected(&answered, "make a realm"),
        }
    }

    async fn deleted(&self, work: &RealmWork) -> Outcome<RealmTold> {
        match self.whose(work).await? {
            None => return Ok(RealmTold::Done),
            Some(true) => {}
            Some(false) => {
                return refused(format!("the realm `{}` was not made for this tenant: it stays", work.realm));
            }
        }
        let token = self.token().await?;
        let answered = self.admin(Method::DELETE, &work.realm, &token, Vec::new()).await?;
        match answered.status {
            200 | 204 | 404 => Ok(RealmTold::Done),
            _ => self.unexpected(&answered, "delete a realm"),
        }
    }

    /// Whether the realm of this name is this tenant's; `None`: there is none. What one may do with a realm that was made
    /// a moment ago stands in no token that is older.
    async fn whose(&self, work: &RealmWork) -> Outcome<Option<bool>> {
        let token = self.token().await?;
        let answered = self.admin(Method::GET, &work.realm, &token, Vec::new()).await?;
        match answered.status {
            200 => {
                let realm: Value = serde_json::from_slice(&answered.body).unwrap_or_default();
                Ok(Some(realm["attributes"][TENANT] == work.tenant.as_str()))
            }
            // There, and nothing of ours.
            403 => Ok(Some(false)),
            404 => Ok(None),
            _ => self.unexpected(&answered, "look at a realm"),
        }
    }

    async fn token(&self) -> Outcome<HeaderValue> {
        let url = format!("{}/realms/master/protocol/openid-connect/token", self.config.url);
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let pair = Zeroizing::new(format!("{}:{}", encoded(&self.client), encoded(&self.secret)));
        let authorization = secret_header(&format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())))?;
        let mut headers = headers(authorization);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let body = b"grant_type=client_credentials".to_vec();
        let answered = self.call(Method::POST, &url, headers, body).await?;
        if answered.status != 200 {
            return self.unexpected(&answered, "log in");
        }
        let said: Value = serde_json::from_slice(&answered.body).unwrap_or_default();
        match said["access_token"].as_str() {
            Some(token) => secret_header(&format!("Bearer {token}")),
            None => Err(RealmTold::Waits("the identity provider gives no token".into())),
        }
    }

    async fn admin(
        &self,
        method: Method,
        realm: &str,
        token: &HeaderValue,
        body: Vec<u8>,
    ) -> Outcome<Answered> {
        // A realm's name has no letter that means something in a path.
        let url = format!("{}/admin/realms/{realm}", self.config.url);
        let mut headers = headers(token.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.call(method, url.trim_end_matches('/'), headers, body).await
    }

    async fn call(&self, method: Method, url: &str, headers: HeaderMap, body: Vec<u8>) -> Outcome<Answered> {
        let answered = self.outbound.call(method, url, headers, body).await;
        answered.map_err(|error| RealmTold::Waits(format!("the identity provider cannot be asked: {error}")))
    }

    /// What passes is waited for; what will be said again is told. Nothing of what it says goes on but its status: it
    /// might repeat what it was sent.
    fn unexpected<T>(&self, answered: &Answered, to: &str) -> Outcome<T> {
        let client = &self.client;
        match answered.status {
            401 => refused(format!(
                "the identity provider does not know the client `{client}`, or not by this secret: {to} cannot be done"
            )),
            403 => refused(format!(
                "the identity provider does not let the client `{client}` {to}: give its service account the role `create-realm`"
            )),
            status if status >= 500 || matches!(status, 408 | 429) => {
                Err(RealmTold::Waits(format!("the identity provider answers with status {status} to: {to}")))
            }
            status => refused(format!("the identity provider answers with status {status} to: {to}")),
        }
    }

    /// All of a realm: the client with which people log in, and what tokens say of them.
    fn realm(&self, work: &RealmWork) -> Value {
        let RealmsConfig { audience, login_client, api_url, .. } = &self.config;
        let mapper = |name: &str, kind: &str, config: Value| json!({ "name": name, "protocol": "openid-connect", "protocolMapper": kind, "config": config });
        let audience = json!({
            "included.custom.audience": audience, "access.token.claim": "true", "id.token.claim": "false",
        });
        let groups = json!({
            "claim.name": "groups", "full.path": "true", "access.token.claim": "true", "id.token.claim": "false",
            "userinfo.token.claim": "false",
        });
        let mut attributes = json!({
            "oauth2.device.authorization.grant.enabled": "true", "pkce.code.challenge.method": "S256",
        });
        if let Some(api) = api_url {
            attributes["backchannel.logout.url"] =
                json!(format!("{api}/v1/login/{REALM}{}/ended", work.tenant_name));
            // Whose logins end, and not which: of several that an administrator ends at once, Keycloak (26.0) tells the
            // session of one only, <https://github.com/keycloak/keycloak/issues/22914>.
            attributes["backchannel.logout.session.required"] = json!("false");
        }
        let mut redirects = vec!["http://127.0.0.1/*".to_owned()];
        redirects.extend(api_url.iter().map(|api| format!("{api}/v1/session/callback")));
        json!({
            "realm": work.realm, "enabled": true, "displayName": work.tenant_name,
            "attributes": { TENANT: work.tenant },
            "clients": [{
                "clientId": login_client, "name": "Rhyzome", "publicClient": true, "standardFlowEnabled": true,
                "directAccessGrantsEnabled": false, "redirectUris": redirects, "attributes": attributes,
                "protocolMappers": [
                    mapper("audience", "oidc-audience-mapper", audience),
                    mapper("groups", "oidc-group-membership-mapper", groups),
                ],
            }],
        })
    }
}

fn headers(authorization: HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, authorization);
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers
}

fn secret_header(text: &str) -> Outcome<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .or_else(|_| refused("what proves who we are cannot be sent to the identity provider"))?;
    value.set_sensitive(true);
    Ok(value)
}
