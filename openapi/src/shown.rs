//! What every call shows of who calls; and how that is had anew, where it lasts for a while only.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode};
use zeroize::Zeroizing;

use super::{Error, Settings, patience};

/// Times in tokens are whole seconds: a login that ends takes those along which were issued in that very second.
const NEXT_SECOND: Duration = Duration::from_millis(1100);

/// Whoever has tokens that last for a while only.
pub trait Renewal: Send + Sync {
    /// Another token than the one that counts no more.
    fn renewed<'a>(&'a self, refused: &'a str) -> BoxFuture<'a, Result<String, Error>>;
}

/// The headers that say who calls.
#[derive(Clone)]
pub struct Shown {
    headers: Arc<RwLock<Vec<(HeaderName, HeaderValue)>>>,
    renewal: Option<Arc<dyn Renewal>>,
}

impl Shown {
    /// By these settings, for as long as they last.
    pub fn new(settings: &Settings) -> Result<Shown, Error> {
        let mut headers = Vec::new();
        match (&settings.token, &settings.login) {
            (Some(token), _) => headers.push(bearer(token)?),
            (None, Some(login)) => {
                let pair = Zeroizing::new(format!("{}:{}", login.name, login.password.as_str()));
                let pair = Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes()));
                headers.push((AUTHORIZATION, value(&format!("Basic {}", pair.as_str()))?));
                if let Some(code) = &login.code {
                    headers.push((HeaderName::from_static("x-rhyzome-otp"), value(code)?));
                }
            }
            (None, None) => {}
        }
        Ok(Shown { headers: Arc::new(RwLock::new(headers)), renewal: None })
    }

    /// With tokens from there when one counts no more.
    pub fn renewed_by(self, renewal: Arc<dyn Renewal>) -> Shown {
        Shown { renewal: Some(renewal), ..self }
    }

    /// The headers as they are now.
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        self.headers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request that shows nothing yet, and again as long as that may help. What is sent as it is read cannot be
    /// sent twice.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, Sent> {
        let mut request = request;
        let mut renewals = 0;
        loop {
            let again = request.try_clone();
            let shown = self.headers();
            let whole = shown.iter().fold(request, |request, (name, value)| request.header(name, value));
            let response = patience::send(whole).await.map_err(Sent::Lost)?;
            let refused = response.status() == StatusCode::UNAUTHORIZED;
            let Some(next) = again.filter(|_| refused) else { return Ok(response) };
            if !self.renew(&shown, &mut renewals).await.map_err(Sent::Refused)? {
                return Ok(response);
            }
            request = next;
        }
    }

    /// Has other headers than these, if there is a way and it was not tried twice. A call that was refused has changed
    /// nothing.
    pub async fn renew(
        &self,
        shown: &[(HeaderName, HeaderValue)],
        renewals: &mut u32,
    ) -> Result<bool, Error> {
        let token = shown.iter().find(|(name, _)| name == AUTHORIZATION);
        let token = token.and_then(|(_, value)| value.to_str().ok()?.strip_prefix("Bearer "));
        let (Some(renewal), Some(token)) = (&self.renewal, token) else { return Ok(false) };
        match *renewals {
            0 => {}
            1 => tokio::time::sleep(NEXT_SECOND).await,
            _ => return Ok(false),
        }
        *renewals += 1;
        let header = bearer(&renewal.renewed(token).await?)?;
        *self.headers.write().unwrap_or_else(PoisonError::into_inner) = vec![header];
        Ok(true)
    }
}

/// Why there is no response.
pub enum Sent {
    /// The server was not reached.
    Lost(reqwest::Error),
    /// There is no other token.
    Refused(Error),
}

fn bearer(token: &str) -> Result<(HeaderName, HeaderValue), Error> {
    Ok((AUTHORIZATION, value(&format!("Bearer {token}"))?))
}

fn value(text: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::Settings("the token, or the code, has letters that no header can hold".into()))?;
    value.set_sensitive(true);
    Ok(value)
}
