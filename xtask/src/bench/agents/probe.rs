//! Requests at a steady pace, by a thread of its own, and how long each takes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::bench::figure::ms;
use crate::http;
use crate::world::World;

/// Between two requests.
const PACE: Duration = Duration::from_millis(20);
/// An answer that takes longer is one that does not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Somebody who asks.
pub struct Probe {
    is_over: Arc<AtomicBool>,
    asking: JoinHandle<Result<Vec<f64>>>,
}

impl Probe {
    /// Begins to ask for an object, as the operator.
    pub fn start(world: &World) -> Result<Probe> {
        let (server, token) = (world.http, world.token()?);
        let is_over = Arc::new(AtomicBool::new(false));
        let until = is_over.clone();
        let asking = std::thread::spawn(move || ask(server, &token, &until));
        Ok(Probe { is_over, asking })
    }

    /// Ends; milliseconds of each request.
    pub fn end(self) -> Result<Vec<f64>> {
        self.is_over.store(true, Ordering::Relaxed);
        self.asking.join().unwrap_or_else(|_| bail!("whoever asks panicked"))
    }

    /// Asks for so long.
    pub fn for_a_while(self, long: Duration) -> Result<Vec<f64>> {
        std::thread::sleep(long);
        self.end()
    }
}

fn ask(server: SocketAddr, token: &str, until: &AtomicBool) -> Result<Vec<f64>> {
    let headers = [format!("Authorization: Bearer {token}")];
    let mut times = Vec::new();
    let mut next = Instant::now();
    while !until.load(Ordering::Relaxed) || times.is_empty() {
        let since = Instant::now();
        let reply = http::request(server, "GET", "/v1/nodes/sim-1", &headers, "", PATIENCE)?;
        if reply.status != 200 {
            bail!("GET of a node answers {}: {}", reply.status, reply.body);
        }
        times.push(ms(since.elapsed()));
        // Those that were late are not asked for again: the pace is what a user keeps up.
        next = (next + PACE).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(times)
}
