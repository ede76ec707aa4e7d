//! A server that has had enough says when to come again: whoever is told so has changed nothing, and may ask once more.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::time::{Instant, sleep};

/// The longest that is waited in all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends it, and again when it is time. What is sent as it is read cannot be sent twice.
pub async fn send(mut request: RequestBuilder) -> Result<Response, reqwest::Error> {
    let end = Instant::now() + PATIENCE;
    loop {
        let again = request.try_clone();
        let response = request.send().await?;
        match (again, later(&response)) {
            (Some(again), Some(later)) if Instant::now() + later <= end => {
                sleep(later).await;
                request = again;
            }
            _ => return Ok(response),
        }
    }
}

/// When to come again, if that is what it says.
fn later(response: &Response) -> Option<Duration> {
    if response.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}
