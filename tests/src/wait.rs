//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Asks until the answer is `Some`, for at most so many seconds; what is waited for is named in the failure.
pub async fn until<T>(what: &str, seconds: u64, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "waited {seconds} s in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
