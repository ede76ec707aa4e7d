//! What tests of authenticators need: a clock that they set, and somebody on loopback whom authenticators ask.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::kernel::env::{Clock, Random};
use crate::kernel::{Env, Timestamp};
use crate::outbound::{Limits, Outbound, Rules, SystemNames};

/// Shows so many microseconds.
#[derive(Clone, Default)]
pub struct Watch(Arc<AtomicI64>);

struct Counted(AtomicU64);

impl Watch {
    /// So many seconds later.
    pub fn pass(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for Watch {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst) + 1_800_000_000_000_000)
    }
}

impl Random for Counted {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.0.fetch_add(1, Ordering::SeqCst).wrapping_mul(167).to_le_bytes()[0];
        }
    }
}

/// An environment with this clock.
pub fn env(watch: &Watch) -> Env {
    Env::new(Arc::new(watch.clone()), Arc::new(Counted(AtomicU64::new(1))))
}

/// What was asked of a `Served`.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Method, path and query: `GET /keys`.
    pub line: String,
    /// All headers, in lower case.
    pub headers: String,
    /// The body.
    pub body: String,
}

/// Somebody on loopback who answers by a function, and keeps what was asked.
pub struct Served {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    asked: Arc<Mutex<Vec<Question>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    /// Answers with status and JSON.
    pub async fn new<F>(answer: F) -> Served
    where
        F: Fn(&Question) -> (u16, String) + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Question>>> = Arc::default();
        let (kept, answer) = (asked.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, answer) = (kept.clone(), answer.clone());
                tokio::spawn(async move {
                    // Whoever hangs up in the middle is not answered.
                    let _ = converse(stream, &kept, &*answer).await;
                });
            }
        });
        Served { url, asked, task }
    }

    /// What was asked until now.
    pub fn asked(&self) -> Vec<Question> {
        self.asked.lock().unwrap().clone()
    }

    /// How often something that begins so was asked.
    pub fn count(&self, line: &str) -> usize {
        self.asked().iter().filter(|question| question.line.starts_with(line)).count()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(
    mut stream: TcpStream,
    kept: &Mutex<Vec<Question>>,
    answer: &(dyn Fn(&Question) -> (u16, String) + Send + Sync),
) -> std::io::Result<()> {
    let mut read = Vec::new();
    let question = loop {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).await?;
        read.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some(question) = whole(&text) {
            break question;
        }
        if count == 0 {
            return Ok(());
        }
    };
    kept.lock().unwrap().push(question.clone());
    let (status, body) = answer(&question);
    let head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-type: application/json\r\n");
    stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await
}

fn whole(text: &str) -> Option<Question> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let (line, headers) = head.split_once("\r\n")?;
    let headers = headers.to_ascii_lowercase();
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |text| text.trim().parse().unwrap());
    let line = line.trim_end_matches(" HTTP/1.1").to_owned();
    (body.len() >= length).then(|| Question { line, headers, body: body.to_owned() })
}

/// The client for others, which may call this machine.
pub fn outbound() -> Arc<Outbound> {
    let rules = Rules { allow: vec!["127.0.0.0/8".parse().unwrap()], own: Vec::new() };
    let limits = Limits { time: Duration::from_secs(5), ..Limits::default() };
    Arc::new(Outbound::new(rules, limits, Arc::new(SystemNames)).unwrap())
}
