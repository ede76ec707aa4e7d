//! People who log in in a browser: by a code with PKCE, a state and a nonce. Who somebody is then follows from their access
//! token, as if they had shown that; the identity token says that it is an answer to what this browser asked.

use futures_util::future::BoxFuture;
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    AsyncHttpClient, AuthType, AuthUrl, AuthorizationCode, Client, ClientId, CsrfToken, EndpointNotSet,
    EndpointSet, ExtraTokenFields, HttpRequest, HttpResponse, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, RequestTokenError, Scope, StandardRevocableToken, StandardTokenResponse, TokenResponse as _,
    TokenUrl,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use super::claims::{SKEW, seconds};
use super::provider::NoKey;
use super::{Fault, Oidc, Signed};
use crate::auth::{Arrived, Refusal, Trip, Verdict};
use crate::kernel::Caller;
use crate::outbound::{CallError, Outbound};

/// What comes with an access token.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct WithIdentity {
    id_token: Option<String>,
}

impl ExtraTokenFields for WithIdentity {}

type Provided = Client<
    BasicErrorResponse,
    StandardTokenResponse<WithIdentity, BasicTokenType>,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// Calls the provider as all are called.
struct Http<'a>(&'a Outbound);

#[derive(Debug, thiserror::Error)]
enum Uncalled {
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("{0}")]
    Answer(#[from] oauth2::http::Error),
}

impl<'c> AsyncHttpClient<'c> for Http<'_> {
    type Error = Uncalled;
    type Future = BoxFuture<'c, Result<HttpResponse, Uncalled>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let answered = self.0.call(parts.method, &parts.uri.to_string(), parts.headers, body).await?;
            let response = oauth2::http::Response::builder().status(answered.status);
            Ok(response.header("content-type", "application/json").body(answered.body)?)
        })
    }
}

impl Oidc {
    async fn provided(&self, trip: &Trip) -> Result<Provided, String> {
        let client =
            self.login_client.clone().ok_or("nobody logs in here by a browser: `login_client` is not set")?;
        let away = |_: NoKey| "the provider cannot be asked where one logs in".to_owned();
        let places = self.provider.places().await.map_err(away)?;
        let bad = |_| "the provider says no good URL where one logs in".to_owned();
        let authorization = places.authorization.ok_or("the provider offers no login by a browser")?;
        let token = places.token.ok_or("the provider offers no login by a browser")?;
        Ok(Client::new(ClientId::new(client))
            .set_auth_type(AuthType::RequestBody)
            .set_auth_uri(AuthUrl::new(authorization).map_err(bad)?)
            .set_token_uri(TokenUrl::new(token).map_err(bad)?)
            .set_redirect_uri(RedirectUrl::new(trip.redirect.clone()).map_err(bad)?))
    }

    /// Where the browser is sent.
    pub(super) async fn sent(&self, trip: &Trip) -> Result<String, String> {
        let verifier = PkceCodeVerifier::new(trip.verifier());
        let client = self.provided(trip).await?;
        let (url, _) = client
            .authorize_url(|| CsrfToken::new(trip.state()))
            .add_scope(Scope::new("openid".to_owned()))
            .add_extra_param("nonce", trip.nonce())
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok(url.into())
    }

    /// Who comes back with this code, from whom it says (RFC 9207).
    pub(super) async fn back(&self, trip: &Trip, code: &str, iss: Option<&str>) -> Result<Arrived, Refusal> {
        let refused = |why: &str| Refusal::for_good(why);
        if iss.is_some_and(|iss| iss != self.demands.issuer) {
            return Err(refused("this answer is another provider's"));
        }
        let client = self.provided(trip).await.map_err(|why| Refusal::of(self.away(&why)))?;
        let exchange = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(trip.verifier()));
        let tokens = exchange.request_async(&Http(&self.outbound)).await.map_err(|error| match error {
            RequestTokenError::ServerResponse(said) => {
                tracing::info!(authenticator = self.terms.authenticator, error = %said.error(), "a code is not taken");
                refused("the provider does not take this code any more: begin again")
            }
            other => Refusal::of(self.away(&format!("no tokens for a code: {other}"))),
        })?;
        let identity = tokens.extra_fields().id_token.clone();
        let identity = identity.ok_or_else(|| refused("the provider says nothing of who has logged in"))?;
        let (subject, login) = self.identified(&identity, trip).await?;
        match self.verdict(tokens.access_token().secret()).await {
            Verdict::Caller(caller) if caller.subject == subject => {
                let session = caller.session.clone().or(login);
                Ok(Arrived { caller: Caller { session, ..caller }, hint: identity })
            }
            Verdict::Caller(_) => Err(refused("the provider gives tokens of two people")),
            Verdict::NotMine => Err(refused("the provider gives an access token that is none of its own")),
            other => Err(Refusal::of(other)),
        }
    }

    /// Of whom the identity token is, and the name of their login.
    async fn identified(&self, token: &str, trip: &Trip) -> Result<(String, Option<String>), Refusal> {
        let signed =
            Signed::parse(token).ok_or_else(|| Refusal::for_good("the provider's identity token is none"))?;
        let not_good =
            |why: String| Refusal::for_good(format!("the provider's identity token is not good: {why}"));
        match self.verified(&signed).await {
            Ok(()) => self.is_answer(&signed.claims, trip).map_err(not_good),
            Err(Fault::Bad(why)) => Err(not_good(why)),
            Err(Fault::Away) => Err(Refusal::of(self.away("the issuer cannot be asked for its keys"))),
        }
    }

    /// OpenID Connect Core 1.0, 3.1.3.7.
    fn is_answer(&self, claims: &Value, trip: &Trip) -> Result<(String, Option<String>), String> {
        let text = |name: &str| claims[name].as_str().filter(|text| !text.is_empty());
        let client = self.login_client.as_deref().unwrap_or_default();
        let for_us = match &claims["aud"] {
            Value::String(one) => one == client,
            // With other audiences it must say that it was given to us.
            Value::Array(many) => {
                many.iter().any(|one| one == client) && (many.len() == 1 || text("azp") == Some(client))
            }
            _ => false,
        };
        let now = self.env.now();
        let until = seconds(claims, "exp")?.ok_or("it does not say when it ends")?;
        if text("iss") != Some(&self.demands.issuer) {
            return Err("it was issued by somebody else".into());
        }
        if !for_us || text("azp").is_some_and(|azp| azp != client) {
            return Err("it is for somebody else".into());
        }
        if until.plus_seconds(SKEW) <= now
            || seconds(claims, "iat")?.is_some_and(|at| at > now.plus_seconds(SKEW))
        {
            return Err("it is of another time: compare the clocks".into());
        }
        if text("nonce") != Some(&trip.nonce()) {
            return Err("it is no answer to this login".into());
        }
        let subject = text("sub").ok_or("it does not say whose it is")?;
        Ok((subject.to_owned(), text("sid").map(str::to_owned)))
    }

    /// Where a browser ends its login at the provider, if it offers that (OpenID Connect RP-Initiated Logout 1.0).
    pub(super) async fn end_url(&self, hint: &str) -> Option<String> {
        let place = self.provider.places().await.ok()?.end?;
        let mut url = Url::parse(&place).ok()?;
        let client = self.login_client.as_deref()?;
        url.query_pairs_mut().append_pair("id_token_hint", hint).append_pair("client_id", client);
        Some(url.into())
    }
}
