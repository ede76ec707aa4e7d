//! The proof is a listener that nobody ever connected to.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// Each name with the answers that it gives, one after the other; the last one stays.
#[derive(Default)]
struct Scripted(Mutex<BTreeMap<String, Vec<Vec<IpAddr>>>>);

impl Scripted {
    fn new(names: &[(&str, &[&[&str]])]) -> Arc<Scripted> {
        let parse = |list: &&[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let all =
            names.iter().map(|(name, answers)| ((*name).to_owned(), answers.iter().map(parse).collect()));
        Arc::new(Scripted(Mutex::new(all.collect())))
    }
}

impl Names for Scripted {
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, std::io::Result<Vec<IpAddr>>> {
        let mut all = self.0.lock().unwrap();
        let answer = match all.get_mut(name) {
            None => Err(std::io::ErrorKind::NotFound.into()),
            Some(answers) if answers.len() > 1 => Ok(answers.remove(0)),
            Some(answers) => Ok(answers[0].clone()),
        };
        Box::pin(std::future::ready(answer))
    }
}

/// Answers the same to everybody, and counts them.
async fn listener(address: &str, answer: String) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                // The request is small, and nobody looks at it.
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (port, count)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn client(allow: &str, names: Arc<Scripted>) -> Outbound {
    let allow = allow.split_whitespace().map(|range| range.parse().unwrap()).collect();
    let limits = Limits { time: Duration::from_secs(5), bytes: 1000, redirects: 3 };
    Outbound::new(Rules { allow, own: Vec::new() }, limits, names).unwrap()
}

#[tokio::test]
async fn nobody_is_called_on_this_machine_by_any_name() {
    let (port, canary) = listener("127.0.0.1:0", answer("200 OK", "", "secret")).await;
    let names = Scripted::new(&[
        ("rebound.example", &[&["127.0.0.1"]]),
        ("mapped.example", &[&["::ffff:127.0.0.1"]]),
        ("zero.example", &[&["0.0.0.0"]]),
        ("mixed.example", &[&["93.184.216.34", "127.0.0.1"]]),
        ("link.example", &[&["169.254.169.254"]]),
        ("private.example", &[&["10.0.0.1"]]),
        ("six.example", &[&["::1"]]),
        ("localhost", &[&["127.0.0.1", "::1"]]),
    ]);
    let client = client("", names);
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0x7f.1",
        "017700000001",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00::1]",
        "169.254.169.254",
        "10.0.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "①②⑦.0.0.1",
        "rebound.example",
        "mapped.example",
        "zero.example",
        "mixed.example",
        "link.example",
        "private.example",
        "six.example",
        "localhost",
        "LOCALHOST",
    ];
    for host in hosts {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}:{port}/");
            let told = client.get(&url).await;
            assert!(matches!(told, Err(CallError::Refused { .. })), "{url}: {told:?}");
            let told = client.post(&url, HeaderMap::new(), Vec::new()).await;
            assert!(matches!(told, Err(CallError::Refused { .. })), "{url}: {told:?}");
        }
    }
    for url in [
        format!("http://user@127.0.0.1:{port}/"),
        format!("http://1.1.1.1:80@127.0.0.1:{port}/"),
        format!("http://:password@example:{port}/"),
        "file:///etc/passwd".to_owned(),
        format!("gopher://127.0.0.1:{port}/_x"),
        format!("ftp://127.0.0.1:{port}/"),
        "http://".to_owned(),
        "no url".to_owned(),
    ] {
        let told = client.get(&url).await;
        assert!(matches!(told, Err(CallError::Url(_))), "{url}: {told:?}");
    }
    let unknown = client.get("http://nobody.example/").await;
    assert_eq!(unknown, Err(CallError::Unresolved("nobody.example".into())));
    assert_eq!(canary.load(Ordering::SeqCst), 0, "nobody connected");
}

#[tokio::test]
async fn redirects_lead_to_nobody_who_is_not_called() {
    let (canary_port, canary) = listener("127.0.0.1:0", answer("200 OK", "", "secret")).await;
    let names = Scripted::new(&[("hidden.example", &[&["127.0.0.1"]])]);
    let client = client("127.0.0.2/32", names);
    for to in [
        format!("http://127.0.0.1:{canary_port}/"),
        format!("http://hidden.example:{canary_port}/"),
        format!("//127.1:{canary_port}/"),
        format!("http://[::ffff:127.0.0.1]:{canary_port}/"),
    ] {
        let moved = answer("302 Found", &format!("location: {to}\r\n"), "");
        let (port, calls) = listener("127.0.0.2:0", moved).await;
        let url = format!("http://127.0.0.2:{port}/");
        let told = client.get(&url).await;
        assert!(matches!(told, Err(CallError::Refused { .. })), "{to}: {told:?}");
        // What is sent is sent to one place only.
        let sent = client.post(&url, HeaderMap::new(), b"x".to_vec()).await;
        assert_eq!((sent, calls.load(Ordering::SeqCst)), (Ok(302), 2));
    }
    let (port, calls) = listener("127.0.0.2:0", answer("302 Found", "location: /again\r\n", "")).await;
    assert_eq!(client.get(&format!("http://127.0.0.2:{port}/")).await, Err(CallError::Redirects(3)));
    assert_eq!((calls.load(Ordering::SeqCst), canary.load(Ordering::SeqCst)), (4, 0));
}

#[tokio::test]
async fn a_name_is_judged_at_each_connection_and_not_resolved_again() {
    let (port, allowed) = listener("127.0.0.2:0", answer("200 OK", "", "hello")).await;
    let canary = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    // First it is one that may be called; from then on it is not.
    let names = Scripted::new(&[("rebinding.example", &[&["127.0.0.2"], &["127.0.0.1"]])]);
    let client = client("127.0.0.2/32", names);
    let url = format!("http://rebinding.example:{port}/");
    assert_eq!(client.get(&url).await, Ok(Answered { status: 200, body: b"hello".to_vec() }));
    assert!(matches!(client.get(&url).await, Err(CallError::Refused { .. })));
    assert_eq!(allowed.load(Ordering::SeqCst), 1);
    let nobody = futures_util::FutureExt::now_or_never(canary.accept());
    assert!(nobody.is_none(), "nobody connected");
}

#[tokio::test]
async fn answers_have_an_end() {
    let client = client("127.0.0.2/32", Scripted::new(&[]));
    let (port, _) = listener("127.0.0.2:0", answer("200 OK", "", &"x".repeat(1001))).await;
    let url = format!("http://127.0.0.2:{port}/");
    assert_eq!(client.get(&url).await, Err(CallError::TooLarge(1000)));
    // Who has taken a message has taken it, however much is said of it.
    assert_eq!(client.post(&url, HeaderMap::new(), b"x".to_vec()).await, Ok(200));
    let (port, _) = listener("127.0.0.2:0", answer("200 OK", "", &"x".repeat(1000))).await;
    assert_eq!(client.get(&format!("http://127.0.0.2:{port}/")).await.unwrap().body.len(), 1000);
    // Takes the connection, and says nothing.
    let silent = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let limits = Limits { time: Duration::from_millis(200), ..Limits::default() };
    let client = hasty(limits);
    assert_eq!(client.get(&url).await, Err(CallError::Late(limits.time)));
}

fn hasty(limits: Limits) -> Outbound {
    let rules = Rules { allow: vec!["127.0.0.2/32".parse().unwrap()], own: Vec::new() };
    Outbound::new(rules, limits, Arc::new(SystemNames)).unwrap()
}
