//! A process that answers at an address.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Process;

/// It runs until this is dropped.
#[derive(Debug)]
pub struct Answering {
    process: Process,
    /// Where it is.
    pub address: SocketAddr,
}

impl Answering {
    /// Starts it, and waits until it answers at this path.
    pub fn start(
        mut process: Process,
        address: SocketAddr,
        path: &str,
        patience: Duration,
    ) -> Result<Answering> {
        process.start_and_answer(address, path, patience)?;
        Ok(Answering { process, address })
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate(Duration::from_secs(30)).context("asked to end")?;
        Ok(())
    }
}

/// An address of loopback where nobody listens.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
