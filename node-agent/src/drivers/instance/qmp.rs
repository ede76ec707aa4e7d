//! A client of the QEMU Machine Protocol: JSON lines over a unix socket, answers found by their id.

use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};

/// A QEMU that takes longer for an answer is stuck.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Why QEMU did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU understood and refused.
    #[error("QEMU refused ({class}): {desc}")]
    Command {
        /// QEMU's error class.
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// QEMU ended, or somebody closed the socket.
    #[error("QEMU closed its control socket")]
    Closed,
    /// No answer in time.
    #[error("QEMU did not answer {0} in {secs} s", secs = ANSWER_DEADLINE.as_secs())]
    Silent(String),
    /// The socket itself.
    #[error("QEMU's control socket: {0}")]
    Io(#[from] io::Error),
}

type Answer = oneshot::Sender<Result<Value, QmpError>>;
/// None once the connection is closed.
type Pending = Arc<Mutex<Option<HashMap<u64, Answer>>>>;

/// One connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Pending,
    next_id: AtomicU64,
}

impl Qmp {
    /// Connects and negotiates. Events go to `events`; its closing means that the connection ended.
    pub async fn connect(path: &Path, events: mpsc::Sender<Value>) -> Result<Self, QmpError> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        let mut lines = BufReader::with_capacity(2048, reader).lines();
        let greeting = tokio::time::timeout(ANSWER_DEADLINE, lines.next_line())
            .await
            .map_err(|_| QmpError::Silent("the greeting".into()))??;
        greeting.ok_or(QmpError::Closed)?;
        let pending: Pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let table = pending.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
                if value.get("event").is_some() {
                    // A full or closed channel loses the hint, not the truth: the pidfd and the timer remain.
                    let _ = events.try_send(value);
                } else {
                    settle(&table, value);
                }
            }
            lock(&table).take(); // Drops the senders: all who wait see Closed.
        });
        let qmp = Self { writer: writer.into(), pending, next_id: AtomicU64::new(1) };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs one command and answers what it returned.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.pending).as_mut().ok_or(QmpError::Closed)?.insert(id, sender);
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        self.writer.lock().await.write_all(line.as_bytes()).await?;
        match tokio::time::timeout(ANSWER_DEADLINE, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(QmpError::Closed),
            Err(_) => {
                if let Some(table) = lock(&self.pending).as_mut() {
                    table.remove(&id);
                }
                Err(QmpError::Silent(command.into()))
            }
        }
    }

    /// False once QEMU or the socket is gone.
    pub fn is_open(&self) -> bool {
        lock(&self.pending).is_some()
    }
}

fn settle(table: &Pending, mut value: Value) {
    let Some(id) = value["id"].as_u64() else { return };
    let Some(waiting) = lock(table).as_mut().and_then(|table| table.remove(&id)) else { return };
    let answer = match value.get("error") {
        Some(error) => Err(QmpError::Command {
            class: error["class"].as_str().unwrap_or_default().into(),
            desc: error["desc"].as_str().unwrap_or_default().into(),
        }),
        None => Ok(value["return"].take()),
    };
    let _ = waiting.send(answer);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
