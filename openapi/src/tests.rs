//! The client against a small server of its own, which answers what it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::{Client, Error, Renewal, Resource, Settings};

/// Answers one request for each of these, and hands back what was asked.
async fn server(answers: Vec<(u16, Value)>) -> (Client, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            asked.push(request(&mut stream).await);
            let media = if status < 400 { "application/json" } else { "application/problem+json" };
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let later = if status == 429 { "retry-after: 1\r\n" } else { "" };
            let head =
                format!("HTTP/1.1 {status} x\r\ncontent-type: {media}\r\nconnection: close\r\n{later}");
            let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    let settings = Settings { url, token: Some("secret".into()), ..Settings::default() };
    (Client::new(&settings).unwrap(), asked)
}

/// Head and body of one request.
async fn request(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await.unwrap();
        text.extend_from_slice(&buffer[..length]);
        let said = String::from_utf8_lossy(&text).to_lowercase();
        let Some((head, body)) = said.split_once("\r\n\r\n") else { continue };
        let wanted = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if length == 0 || body.len() >= wanted.map_or(0, |wanted| wanted.parse().unwrap()) {
            return String::from_utf8(text).unwrap();
        }
    }
}

#[tokio::test]
async fn who_is_told_to_come_again_later_does() {
    let (client, asked) =
        server(vec![(429, json!({"type": "/problems/too-many"})), (200, json!({"items": [], "next": null}))])
            .await;
    let since = std::time::Instant::now();
    let list: Vec<Resource> = client.list("/v1/nodes", &[], None).await.unwrap();
    assert!(list.is_empty() && since.elapsed() >= std::time::Duration::from_secs(1));
    let asked = asked.await.unwrap();
    assert_eq!((asked.len(), &asked[0]), (2, &asked[1]));
}

/// Has so many tokens, one after the other.
struct Tokens(AtomicU64);

impl Renewal for Tokens {
    fn renewed<'a>(&'a self, refused: &'a str) -> BoxFuture<'a, Result<String, Error>> {
        Box::pin(async move {
            let left = self.0.fetch_sub(1, Ordering::Relaxed);
            if left == 0 { Err(Error::Settings("it has ended".into())) } else { Ok(format!("{refused}+")) }
        })
    }
}

#[tokio::test]
async fn a_token_that_counts_no_more_is_renewed_and_the_call_made_again() {
    let refused = || (401, json!({"type": "/problems/unauthenticated", "status": 401}));
    // Twice: the first new one may be from the second in which the old one ended.
    let (client, asked) = server(vec![refused(), refused(), (204, Value::Null), (204, Value::Null)]).await;
    let client = client.renewed_by(Arc::new(Tokens(2.into())));
    for _ in 0..2 {
        assert_eq!(client.action("/v1/x", "go", json!({"a": 1})).await.unwrap().status, 204);
    }
    let asked = asked.await.unwrap();
    for (asked, token) in asked.iter().zip(["secret", "secret+", "secret++", "secret++"]) {
        assert!(asked.to_lowercase().contains(&format!("authorization: bearer {token}\r\n")), "{asked}");
        assert!(asked.ends_with("{\"a\":1}"), "{asked}");
    }

    // There is an end to it, and the word of whoever has tokens is the last.
    let (client, asked) = server(vec![refused(); 3]).await;
    let error = client.renewed_by(Arc::new(Tokens(9.into()))).delete("/v1/x").await.unwrap_err();
    assert!(error.is_unauthenticated(), "{error}");
    asked.await.unwrap();
    let (client, asked) = server(vec![refused()]).await;
    let error = client.renewed_by(Arc::new(Tokens(0.into()))).delete("/v1/x").await.unwrap_err();
    assert_eq!(error.to_string(), "it has ended");
    asked.await.unwrap();
}

#[tokio::test]
async fn lists_follow_their_pages() {
    let page = |name: &str, next: Value| (200, json!({"items": [{"name": name}], "next": next}));
    let (client, asked) = server(vec![page("a", json!("two")), page("b", Value::Null)]).await;
    let list: Vec<Resource> =
        client.list("/v1/nodes", &[("phase".into(), "ready".into())], None).await.unwrap();
    assert_eq!(list.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let asked = asked.await.unwrap();
    assert!(asked[0].starts_with("GET /v1/nodes?phase=ready&limit=1000 HTTP/1.1"), "{}", asked[0]);
    assert!(asked[0].to_lowercase().contains("authorization: bearer secret"), "{}", asked[0]);
    assert!(asked[1].starts_with("GET /v1/nodes?phase=ready&limit=1000&page=two "), "{}", asked[1]);
}

#[tokio::test]
async fn problems_are_errors() {
    let told = json!({"type": "/problems/in-use", "title": "Others use it", "status": 409, "detail": "2"});
    let (client, asked) = server(vec![(409, told), (204, Value::Null)]).await;
    let error = client.delete("/v1/nodes/a").await.unwrap_err();
    assert_eq!(error.problem().unwrap().word(), "in-use");
    assert_eq!(client.delete("/v1/nodes/a").await.unwrap().status, 204);
    asked.await.unwrap();
    assert!(matches!(client.delete("/v1/nodes/a").await, Err(Error::Unreachable { .. })));
}

#[tokio::test]
async fn writes_say_what_they_are() {
    let (client, asked) = server(vec![
        (202, json!({"name": "a", "job": "job_1"})),
        (200, json!({"name": "b", "job": "job_0"})),
    ])
    .await;
    let made = client.create("/v1/nodes", json!({"name": "a"})).await.unwrap();
    assert_eq!(made.job.as_deref(), Some("job_1"));
    let changed = client.patch("/v1/nodes/a", json!({"name": "b"}), Some(3)).await.unwrap();
    assert_eq!((changed.object.job.as_deref(), changed.job), (Some("job_0"), None));
    let patch = asked.await.unwrap()[1].to_lowercase();
    assert!(patch.contains("if-match: \"v3\""), "{patch}");
    assert!(patch.contains("content-type: application/merge-patch+json"), "{patch}");
}

#[tokio::test]
async fn uploads_send_the_file_and_count() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("image");
    std::fs::write(&file, "x".repeat(1000)).unwrap();
    let (client, asked) = server(vec![(200, json!({}))]).await;
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let progress = move |bytes| {
        counted.fetch_add(bytes, Ordering::Relaxed);
    };
    client.upload("/v1/images/a/content", &file, progress).await.unwrap();
    let asked = asked.await.unwrap();
    assert!(asked[0].starts_with("PUT /v1/images/a/content"), "{}", asked[0]);
    assert!(asked[0].ends_with(&"x".repeat(1000)), "{}", asked[0]);
    assert_eq!(count.load(Ordering::Relaxed), 1000);
}

#[tokio::test]
async fn a_console_carries_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let guest = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        socket.send(Message::Binary(Bytes::from_static(b"login: "))).await.unwrap();
        let typed = socket.next().await.unwrap().unwrap().into_data();
        socket.close(None).await.unwrap();
        typed
    });
    let client = Client::new(&Settings { url, ..Settings::default() }).unwrap();
    let mut console = client.console("/v1/tenants/t/instances/i/console").await.unwrap();
    assert_eq!(console.read().await.unwrap().unwrap(), "login: ");
    console.write(Bytes::from_static(b"root\r")).await.unwrap();
    assert_eq!(guest.await.unwrap(), "root\r");
    assert_eq!(console.read().await.unwrap(), None);
}

#[tokio::test]
async fn a_refused_console_says_why() {
    let told = json!({"title": "Not in this state", "status": 409, "detail": "no node holds it yet"});
    let (client, asked) = server(vec![(409, told)]).await;
    let Err(error) = client.console("/v1/x/console").await else { panic!("it was opened") };
    assert!(error.to_string().contains("no node holds it yet"), "{error}");
    asked.await.unwrap();
}
