//! One running QEMU, watched by its process and by its control socket.

use super::Bell;
use super::process::Identity;
use super::qmp::{Qmp, QmpError};
use serde_json::{Value, json};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};

/// How soon a QEMU that does not listen yet is tried again: it is a matter of milliseconds after exec.
const KNOCK: Duration = Duration::from_millis(2);

/// A QEMU that is running; dropped when it has ended.
#[derive(Debug)]
pub(super) struct Guest {
    /// The instance's id.
    id: String,
    /// Its process.
    pub identity: Identity,
    socket: PathBuf,
    bell: Bell,
    paused: Arc<AtomicBool>,
    qmp: Mutex<Option<Arc<Qmp>>>,
}

impl Guest {
    /// Watches the process from now on. Speaks with it when it first must.
    pub fn attend(id: &str, identity: Identity, socket: PathBuf, bell: Bell) -> io::Result<Arc<Self>> {
        let exit = identity.watch()?;
        let guest = Arc::new(Self {
            id: id.to_owned(),
            identity,
            socket,
            bell: bell.clone(),
            paused: Arc::default(),
            qmp: Mutex::default(),
        });
        let id = id.to_owned();
        tokio::spawn(async move {
            let how = exit.wait().await.unwrap_or_else(|| "cause unknown, not a child".into());
            tracing::info!(instance = %id, pid = identity.pid, %how, "QEMU has ended");
            let _ = bell.send(id);
        });
        Ok(guest)
    }

    /// Connects to the control socket if there is no connection; a failure shows when a command is sent.
    pub async fn ensure_connected(&self) {
        if let Err(error) = self.connection().await {
            tracing::debug!(instance = %self.id, %error, "no control connection");
        }
    }

    /// Waits until a QEMU that was just started listens, or has ended.
    pub async fn first_contact(&self, deadline: Duration) -> Result<(), QmpError> {
        let attempt = async {
            loop {
                match self.connection().await {
                    Ok(_) => return Ok(()),
                    Err(QmpError::Io(error)) if is_not_listening_yet(&error) && self.identity.is_alive() => {
                        tokio::time::sleep(KNOCK).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(deadline, attempt)
            .await
            .unwrap_or_else(|_| Err(QmpError::Silent("the first connection".into())))
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Runs one command, and answers what it returned.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let qmp = self.connection().await?;
        let answer = qmp.execute(command, arguments).await?;
        match command {
            "stop" => self.paused.store(true, Ordering::Relaxed),
            "cont" => self.paused.store(false, Ordering::Relaxed),
            _ => {}
        }
        Ok(answer)
    }

    async fn connection(&self) -> Result<Arc<Qmp>, QmpError> {
        let mut slot = self.qmp.lock().await;
        if let Some(qmp) = slot.as_ref().filter(|qmp| qmp.is_open()) {
            return Ok(qmp.clone());
        }
        let (sender, receiver) = mpsc::channel(16);
        let qmp = Arc::new(Qmp::connect(&self.socket, sender).await?);
        let status = qmp.execute("query-status", json!({})).await?;
        let is_paused = matches!(status["status"].as_str(), Some("paused" | "prelaunch"));
        self.paused.store(is_paused, Ordering::Relaxed);
        tokio::spawn(listen(self.id.clone(), receiver, self.paused.clone(), self.bell.clone()));
        *slot = Some(qmp.clone());
        Ok(qmp)
    }
}

async fn listen(id: String, mut events: mpsc::Receiver<Value>, paused: Arc<AtomicBool>, bell: Bell) {
    while let Some(event) = events.recv().await {
        let name = event["event"].as_str().unwrap_or_default();
        match name {
            "STOP" => paused.store(true, Ordering::Relaxed),
            "RESUME" => paused.store(false, Ordering::Relaxed),
            "SHUTDOWN" | "POWERDOWN" | "RESET" => {
                tracing::info!(instance = %id, event = name, by_guest = %event["data"]["guest"], "QEMU says");
            }
            _ => continue,
        }
        if bell.send(id.clone()).is_err() {
            return;
        }
    }
}

fn is_not_listening_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
