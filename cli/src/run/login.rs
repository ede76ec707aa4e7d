//! `rhyzome login` and `logout`: by the OpenID provider that the server names, or one that is said.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ArgMatches;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use oauth2::basic::{BasicClient, BasicTokenResponse};
use oauth2::{
    AsyncHttpClient, AuthUrl, AuthorizationCode, ClientId, CsrfToken, DeviceAuthorizationUrl, HttpRequest,
    HttpResponse, PkceCodeChallenge, RedirectUrl, RefreshToken, RequestTokenError, Scope,
    StandardDeviceAuthorizationResponse, TokenResponse as _, TokenUrl,
};
use reqwest::header::CONTENT_TYPE;
use rhyzome_client::{Client, Error, Renewal, Settings};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::{Usage, switch, text};
use crate::profiles::{Profile, Profiles};
use crate::settings::{Chosen, Surroundings};

/// A token is renewed when it is good for less than this.
const EARLY: i64 = 30;
/// How long one may take to log in, in a browser on this machine.
const PATIENCE: Duration = Duration::from_secs(600);
/// What a provider may take to answer.
const CALL: Duration = Duration::from_secs(30);

/// Where a provider has what.
#[derive(Deserialize)]
struct Provider {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    device_authorization_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
}

/// Calls a provider. It follows no redirect: what proves something is shown to nobody else.
struct Http(reqwest::Client);

/// What went wrong with a call.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("{0}")]
    Answer(#[from] oauth2::http::Error),
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = CallError;
    type Future = BoxFuture<'c, Result<HttpResponse, CallError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let request =
                self.0.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body);
            let answer = request.send().await?;
            let mut response = oauth2::http::Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.clone_from(answer.headers());
            }
            Ok(response.body(answer.bytes().await?.to_vec())?)
        })
    }
}

impl Http {
    fn new(settings: &Settings) -> anyhow::Result<Http> {
        // Fails only when one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = match &settings.ca_pem {
            Some(pem) => reqwest::Certificate::from_pem_bundle(pem).context("the CA file")?,
            None => Vec::new(),
        };
        let builder = || reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(CALL);
        // A machine that trusts no authority at all can still call what is not encrypted.
        let client = builder().tls_certs_merge(authorities.clone()).build();
        Ok(Http(client.or_else(|_| builder().tls_certs_only(authorities).build())?))
    }

    async fn provider(&self, issuer: &str) -> anyhow::Result<Provider> {
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let answer = self.0.get(&url).send().await.and_then(reqwest::Response::error_for_status);
        let text =
            answer.with_context(|| format!("{issuer} cannot be asked where one logs in"))?.text().await?;
        let provider: Provider =
            serde_json::from_str(&text).with_context(|| format!("{url} is no OpenID provider"))?;
        if provider.issuer != issuer {
            bail!("{issuer} calls itself {}: log in there, if it is meant", provider.issuer);
        }
        Ok(provider)
    }
}

// === login ===

/// Logs in, and keeps the login.
pub async fn login(matches: &ArgMatches, around: &Surroundings) -> anyhow::Result<()> {
    let Chosen { settings, profile, .. } = crate::settings::server(matches, around)?;
    let http = Http::new(&settings)?;
    let (issuer, client_id) = where_to(matches, &settings).await?;
    let provider = http.provider(&issuer).await?;
    let tokens = match &provider.device_authorization_endpoint {
        Some(url) if !switch(matches, "browser") => by_device(&http, &provider, url, &client_id).await?,
        _ => by_browser(&http, &provider, &client_id).await?,
    };
    let kept = Profile {
        url: settings.url.clone(),
        ca: text(matches, "ca").map(Into::into),
        issuer,
        client_id,
        token_endpoint: provider.token_endpoint,
        revocation_endpoint: provider.revocation_endpoint,
        access_token: tokens.access_token().secret().clone(),
        refresh_token: tokens.refresh_token().map(|token| token.secret().clone()),
        expires_at: expiry(&tokens),
    };
    let token = Some(kept.access_token.clone());
    let me: Value = Client::new(&Settings { token, ..settings })?.get("/v1/whoami").await?;
    let profiles = around.profiles()?;
    let _held = profiles.hold(&profile)?;
    profiles.write(&profile, &kept)?;
    say!("{} at {}; kept as profile `{profile}`", me["name"].as_str().unwrap_or_default(), kept.url);
    Ok(())
}

/// At which provider, and as which client of it.
async fn where_to(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<(String, String)> {
    if let Some(issuer) = text(matches, "issuer") {
        return Ok((issuer, text(matches, "client-id").unwrap_or_else(|| "rhyzome-cli".into())));
    }
    let offered: Value = Client::new(settings)?.get("/v1/login").await?;
    let all: Vec<Value> = offered["items"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = all.iter().filter_map(|one| one["name"].as_str()).collect();
    let named = text(matches, "with");
    let fits = |one: &&Value| named.as_deref().is_none_or(|name| one["name"] == name);
    let mut fitting = all.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => {
            let member =
                |key: &str| one[key].as_str().map(str::to_owned).context("the server's answer is no login");
            Ok((member("issuer")?, member("client_id")?))
        }
        (Some(_), Some(_)) => {
            Err(Usage(format!("there are several places to log in: say --with {}", names.join(", --with ")))
                .into())
        }
        (None, _) if !names.is_empty() => {
            Err(Usage(format!("there is no such place to log in; there are {}", names.join(", "))).into())
        }
        (None, _) => Err(Usage(
            "this server names no place to log in: say --issuer URL, or --token for a token that you have"
                .into(),
        )
        .into()),
    }
}

/// In a browser anywhere, with a code that is shown here (RFC 8628). A provider that says `slow_down` is asked less often.
/// Who asked is who gets the token: that is proven here too (PKCE), where a provider looks at it; others must ignore it.
async fn by_device(
    http: &Http,
    provider: &Provider,
    url: &str,
    client: &str,
) -> anyhow::Result<BasicTokenResponse> {
    let client = BasicClient::new(ClientId::new(client.to_owned()))
        .set_token_uri(TokenUrl::new(provider.token_endpoint.clone())?)
        .set_device_authorization_url(DeviceAuthorizationUrl::new(url.to_owned())?);
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let asked = client
        .exchange_device_code()
        .add_scope(Scope::new("openid".into()))
        .add_extra_param("code_challenge", challenge.as_str().to_owned())
        .add_extra_param("code_challenge_method", challenge.method().as_str().to_owned());
    let details: StandardDeviceAuthorizationResponse = asked.request_async(http).await.map_err(told)?;
    match details.verification_uri_complete() {
        Some(whole) => {
            eprintln!("open {}\n  and see that it shows {}", whole.secret(), details.user_code().secret())
        }
        None => eprintln!(
            "open {}\n  and enter {}",
            details.verification_uri().as_str(),
            details.user_code().secret()
        ),
    }
    let waiting = client.exchange_device_access_token(&details);
    let waiting = waiting.add_extra_param("code_verifier", verifier.secret().clone());
    waiting.request_async(http, tokio::time::sleep, None).await.map_err(told)
}

/// In a browser on this machine, which brings the code back to a port of ours.
async fn by_browser(http: &Http, provider: &Provider, client: &str) -> anyhow::Result<BasicTokenResponse> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no port of this machine can be opened")?;
    let back = format!("http://127.0.0.1:{}/", listener.local_addr()?.port());
    let client = BasicClient::new(ClientId::new(client.to_owned()))
        .set_auth_uri(AuthUrl::new(provider.authorization_endpoint.clone())?)
        .set_token_uri(TokenUrl::new(provider.token_endpoint.clone())?)
        .set_redirect_uri(RedirectUrl::new(back)?);
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let asked = client.authorize_url(CsrfToken::new_random).add_scope(Scope::new("openid".into()));
    let (url, state) = asked.set_pkce_challenge(challenge).url();
    eprintln!("open {url}");
    let code = tokio::time::timeout(PATIENCE, code(&listener, state.secret())).await;
    let code = code.context("nobody has logged in for ten minutes")??;
    let asked = client.exchange_code(AuthorizationCode::new(code)).set_pkce_verifier(verifier);
    asked.request_async(http).await.map_err(told)
}

/// The code that the browser brings. Whoever else comes by is sent away.
async fn code(listener: &TcpListener, state: &str) -> anyhow::Result<String> {
    loop {
        let (stream, _) = listener.accept().await?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        // One that says nothing does not keep the browser waiting.
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_line(&mut line)).await;
        let brought = match read {
            Ok(Ok(_)) => brought(&line, state),
            _ => None,
        };
        let said = match &brought {
            None => ("404 Not Found", "There is nothing here."),
            Some(Ok(_)) => ("200 OK", "You are logged in. You may close this window."),
            Some(Err(_)) => ("200 OK", "This did not work; see the terminal."),
        };
        let answer = format!(
            "HTTP/1.1 {}\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{}",
            said.0,
            said.1.len(),
            said.1
        );
        // The browser may have gone: what it brought counts all the same.
        let _ = stream.get_mut().write_all(answer.as_bytes()).await;
        match brought {
            Some(Ok(code)) => return Ok(code),
            Some(Err(why)) => bail!("the provider refuses: {why}"),
            None => {}
        }
    }
}

/// What a line such as `GET /?code=x&state=y HTTP/1.1` brings; nothing, unless it is the answer to what we asked.
fn brought(line: &str, state: &str) -> Option<Result<String, String>> {
    let path = line.strip_prefix("GET /?")?.split(' ').next()?;
    let url = url::Url::parse(&format!("http://127.0.0.1/?{path}")).ok()?;
    let member =
        |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    if member("state")? != state {
        return None;
    }
    match (member("code"), member("error")) {
        (Some(code), None) => Some(Ok(code)),
        (_, error) => Some(Err(member("error_description").or(error).unwrap_or_default())),
    }
}

fn expiry(tokens: &BasicTokenResponse) -> i64 {
    let life = tokens.expires_in().map_or(60, |life| i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
    Timestamp::now().as_second().saturating_add(life)
}

/// What a provider says, for people.
fn told<E: std::error::Error + 'static>(
    error: RequestTokenError<E, impl oauth2::ErrorResponse + 'static>,
) -> anyhow::Error {
    match error {
        RequestTokenError::ServerResponse(said) => anyhow::anyhow!("the provider refuses: {said}"),
        RequestTokenError::Request(error) => anyhow::anyhow!("the provider cannot be reached: {error}"),
        RequestTokenError::Parse(..) => anyhow::anyhow!("the provider's answer is not understood"),
        RequestTokenError::Other(why) => anyhow::anyhow!("{why}"),
    }
}

// === afterwards ===

/// A login that goes on.
pub struct Kept {
    /// Where it is kept.
    pub profiles: Profiles,
    /// By which name.
    pub name: String,
    /// Of the server.
    pub settings: Settings,
}

impl Renewal for Kept {
    fn renewed<'a>(&'a self, refused: &'a str) -> BoxFuture<'a, Result<String, Error>> {
        Box::pin(async move {
            let token = self.token(Some(refused)).await;
            token.map_err(|error| Error::Settings(format!("{error:#}")))
        })
    }
}

impl Kept {
    /// The token: renewed, if it does not last or was refused.
    pub async fn token(&self, refused: Option<&str>) -> anyhow::Result<String> {
        let Kept { profiles, name, settings } = self;
        let lasts = |profile: &Profile| {
            profile.expires_at > Timestamp::now().as_second() + EARLY
                && refused != Some(profile.access_token.as_str())
        };
        let gone = || anyhow::anyhow!("there is no login `{name}` any more: `rhyzome login`");
        let kept = profiles.read(name)?.ok_or_else(gone)?;
        if lasts(&kept) {
            return Ok(kept.access_token);
        }
        let _held = profiles.hold(name)?;
        // Somebody else may just have done it.
        let mut kept = profiles.read(name)?.ok_or_else(gone)?;
        if lasts(&kept) {
            return Ok(kept.access_token);
        }
        let again = || format!("the login `{name}` has ended: `rhyzome login --profile {name}`");
        let refresh = kept.refresh_token.clone().with_context(again)?;
        let client = BasicClient::new(ClientId::new(kept.client_id.clone()))
            .set_token_uri(TokenUrl::new(kept.token_endpoint.clone())?);
        let http = Http::new(settings)?;
        let refresh = RefreshToken::new(refresh);
        let renewed = client.exchange_refresh_token(&refresh).request_async(&http).await;
        let tokens = match renewed {
            Err(RequestTokenError::ServerResponse(_)) => bail!(again()),
            other => other.map_err(told)?,
        };
        kept.access_token.clone_from(tokens.access_token().secret());
        kept.expires_at = expiry(&tokens);
        if let Some(next) = tokens.refresh_token() {
            kept.refresh_token = Some(next.secret().clone());
        }
        profiles.write(name, &kept)?;
        Ok(kept.access_token)
    }
}

/// Gives the login back, and forgets it.
pub async fn logout(matches: &ArgMatches, around: &Surroundings) -> anyhow::Result<()> {
    let name = text(matches, "profile").unwrap_or_else(|| crate::profiles::DEFAULT.into());
    let profiles = around.profiles()?;
    let _held = profiles.hold(&name)?;
    let kept = profiles.read(&name).unwrap_or_else(|error| {
        eprintln!("rhyzome: {error:#}");
        None
    });
    profiles.remove(&name)?;
    match kept {
        None => say!("there is no login `{name}`"),
        Some(kept) => match give_back(&kept).await {
            Ok(()) => say!("logged out of {}", kept.url),
            Err(error) => {
                // It is forgotten here all the same: without it nobody on this machine is let in.
                eprintln!("rhyzome: the provider was not told: {error:#}");
                say!("the login at {} is forgotten", kept.url);
            }
        },
    }
    std::io::stdout().flush()?;
    Ok(())
}

async fn give_back(kept: &Profile) -> anyhow::Result<()> {
    let url = kept.revocation_endpoint.clone().context("it takes no token back")?;
    let refresh = kept.refresh_token.clone().context("there is nothing to give back")?;
    let ca_pem = kept.ca.as_ref().map(std::fs::read).transpose()?;
    let http = Http::new(&Settings { ca_pem, ..Settings::default() })?;
    // RFC 7009.
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("token", &refresh)
        .append_pair("token_type_hint", "refresh_token")
        .append_pair("client_id", &kept.client_id)
        .finish();
    let request = http.0.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
    request.send().await?.error_for_status()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_what_was_asked_counts() {
        let line = |query: &str| format!("GET /?{query} HTTP/1.1\r\n");
        assert_eq!(brought(&line("code=c%2F1&state=s"), "s"), Some(Ok("c/1".into())));
        assert_eq!(brought(&line("state=s&error=access_denied"), "s"), Some(Err("access_denied".into())));
        for other in ["code=c&state=t", "code=c", "state=s2&code=c"] {
            assert_eq!(brought(&line(other), "s"), None, "{other}");
        }
        assert_eq!(brought("GET /favicon.ico HTTP/1.1\r\n", "s"), None);
        assert_eq!(brought("POST /?code=c&state=s HTTP/1.1\r\n", "s"), None);
        assert_eq!(brought("", "s"), None);
    }

    #[tokio::test]
    async fn strangers_at_the_port_do_not_end_the_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let visits = tokio::spawn(async move {
            for path in ["/favicon.ico", "/?code=evil&state=guessed", "/?code=good&state=ours"] {
                let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
                let mut said = String::new();
                tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut said).await.unwrap();
                assert_eq!(said.contains("logged in"), path.contains("ours"), "{path}: {said}");
            }
        });
        assert_eq!(code(&listener, "ours").await.unwrap(), "good");
        visits.await.unwrap();
    }
}
