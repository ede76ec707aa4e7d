//! Clients that are slow, or mean it badly: each is cut off, is told where that is possible, and keeps nobody else from
//! being served. Over sockets, as a server has them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use h2::client::SendRequest;
use hyper::body::Bytes;
use hyper::{Request, Response};
use rhyzome_api::auth::OperatorToken;
use rhyzome_api::limits::{BodyLimits, ConnectionLimits, LimitsConfig};
use rhyzome_tests::door::Door;
use rhyzome_tests::exposition::parse;
use rhyzome_tests::face::{Face, TOKEN, roomy};
use rhyzome_tests::world::{Engine, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Whatever must end has ended by then, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nobody takes back so much.
const MANY: usize = 100_000;
const NETWORKS: &str = "/v1/tenants/default/networks";

/// Whoever is slow is found out in a second or two.
fn hasty() -> ConnectionLimits {
    ConnectionLimits {
        header: Duration::from_secs(1),
        idle: Duration::from_secs(2),
        stall: Duration::from_secs(1),
        streams: 50,
        of_one_address: 40,
        ..ConnectionLimits::default()
    }
}

/// The API behind a door.
struct Place {
    door: Door,
    _face: Face,
    _world: World,
}

impl Place {
    async fn new() -> Place {
        let world = World::new(Engine::Sqlite).await;
        let body = BodyLimits { time: Duration::from_secs(1), ..BodyLimits::default() };
        let limits = LimitsConfig { body, ..roomy() };
        let face = Face::within(&world, vec![Arc::new(OperatorToken::new(TOKEN))], limits);
        let door = Door::within(face.router(), hasty(), None);
        Place { door, _face: face, _world: world }
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.door.address).await.unwrap()
    }

    /// Others are served as if nothing were.
    async fn serves(&self) {
        let answer = ask(self.door.address, &get_networks("close")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// So many were refused by this limit.
    fn refused(&self, limit: &str) -> f64 {
        let series = format!("rhyzome_http_refused_total{{limit=\"{limit}\",tenant=\"\"}}");
        parse(&self.door.metrics.text()).get(&series).copied().unwrap_or_default()
    }
}

fn get_networks(connection: &str) -> String {
    format!(
        "GET {NETWORKS} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\nconnection: {connection}\r\n\r\n"
    )
}

fn post_networks(length: usize) -> String {
    format!(
        "POST {NETWORKS} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    )
}

/// All that is answered until the connection ends.
async fn ask(server: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

/// All that comes until the other end hangs up.
async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("nobody hangs up");
    // A connection that is reset has ended, too.
    drop(end);
    String::from_utf8_lossy(&read).into_owned()
}

async fn h2(stream: TcpStream) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let (send, connection) =
        h2::client::Builder::new().initial_window_size(1 << 16).handshake(stream).await.unwrap();
    (send, tokio::spawn(connection))
}

fn asking(path: &str) -> Request<()> {
    let request = Request::get(format!("http://a{path}")).header("authorization", format!("Bearer {TOKEN}"));
    request.body(()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_headers() {
    let place = Place::new().await;
    // One says nothing, one a little, one a little each moment, one begins to speak HTTP/2 and stops, one is quick once
    // and slow the second time.
    let silent = async { rest(&mut place.dial().await).await };
    let stopped = async { ask(place.door.address, "GET / HTTP/1.1\r\nhost: a\r\n").await };
    let dripping = async {
        let mut stream = place.dial().await;
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let since = Instant::now();
        while since.elapsed() < PATIENCE && stream.write_all(b"x: b\r\n").await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
        assert!(since.elapsed() < PATIENCE, "somebody who never ends is listened to");
        String::new()
    };
    let preface = async {
        let mut stream = place.dial().await;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        // It is answered with settings, and then nothing.
        rest(&mut stream).await;
        String::new()
    };
    let second = async {
        let mut stream = place.dial().await;
        stream.write_all(get_networks("keep-alive").as_bytes()).await.unwrap();
        sleep(Duration::from_millis(500)).await;
        stream.write_all(b"GET / HT").await.unwrap();
        let all = rest(&mut stream).await;
        assert!(all.starts_with("HTTP/1.1 200"), "{all}");
        String::new()
    };
    let all = tokio::join!(silent, stopped, dripping, preface, second);
    assert_eq!(all, Default::default(), "nobody is answered who did not ask");
    assert_eq!(place.refused("header-seconds"), 5.0);
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections() {
    let place = Place::new().await;
    let mut stream = place.dial().await;
    stream.write_all(get_networks("keep-alive").as_bytes()).await.unwrap();
    let since = Instant::now();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert!(since.elapsed() >= Duration::from_secs(1), "it is kept for a while");
    let (mut send, connection) = h2(place.dial().await).await;
    let (answer, _) = send.send_request(asking(NETWORKS), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    let _ = timeout(PATIENCE, connection).await.expect("it is kept for ever");
    assert_eq!(place.refused("connection-idle"), 2.0);
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_stall() {
    let place = Place::new().await;
    let told = ask(place.door.address, &format!("{}{{", post_networks(100))).await;
    assert!(told.starts_with("HTTP/1.1 408") && told.contains("body-seconds"), "{told}");
    // Over HTTP/2 the same, and the connection serves others.
    let (mut send, _connection) = h2(place.dial().await).await;
    let request = Request::post(format!("http://a{NETWORKS}"))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json");
    let (answer, _body) = send.send_request(request.body(()).unwrap(), false).unwrap();
    assert_eq!(timeout(PATIENCE, answer).await.unwrap().unwrap().status(), 408);
    let (answer, _) = send.send_request(asking(NETWORKS), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn giant_and_deep_json() {
    let place = Place::new().await;
    let server = place.door.address;
    let giant = 64 << 20;
    let told = async {
        let mut stream = place.dial().await;
        stream.write_all(post_networks(giant).as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let piece = vec![b' '; 1 << 20];
        let send = async {
            for _ in 0..64 {
                write.write_all(&piece).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let mut head = vec![0; 12];
        tokio::select! {
            () = send => {}
            read = read.read_exact(&mut head) => drop(read.unwrap()),
        }
        String::from_utf8(head).unwrap()
    };
    assert_eq!(timeout(PATIENCE, told).await.unwrap(), "HTTP/1.1 413");
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let body = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        let told = ask(
            server,
            &format!(
                "{}{body}",
                post_networks(body.len()).replace("host: a", "host: a\r\nconnection: close")
            ),
        )
        .await;
        assert!(told.starts_with("HTTP/1.1 400") && told.contains("deeper than 32"), "{told}");
    }
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn giant_headers() {
    let place = Place::new().await;
    let giant = "a".repeat(1 << 20);
    let mut stream = place.dial().await;
    // Not all of it is read, so that not all of it can be written.
    let _ = stream.write_all(format!("GET /v1 HTTP/1.1\r\nhost: a\r\nx: {giant}\r\n\r\n").as_bytes()).await;
    let told = rest(&mut stream).await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 431"), "{told}");
    let many: String = (0..200).map(|n| format!("x-{n}: a\r\n")).collect();
    let told = ask(place.door.address, &format!("GET /v1 HTTP/1.1\r\nhost: a\r\n{many}\r\n")).await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 431"), "{told}");
    let (mut send, _connection) = h2(place.dial().await).await;
    let mut request = asking(NETWORKS);
    for n in 0..20 {
        let name = hyper::header::HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
        request.headers_mut().insert(name, "a".repeat(4000).parse().unwrap());
    }
    let (answer, _) = send.send_request(request, true).unwrap();
    let refused = match timeout(PATIENCE, answer).await.unwrap() {
        Ok(answer) => answer.status() == 431,
        Err(_) => true,
    };
    assert!(refused, "80 kB of headers are taken");
    place.serves().await;
}

/// What is asked is taken back at once, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset() {
    let place = Place::new().await;
    let path = "/v1/events";
    let (mut send, connection) = h2(place.dial().await).await;
    let (since, mut asked) = (Instant::now(), 0);
    while since.elapsed() < PATIENCE && asked < MANY {
        let Ok(ready) = send.ready().await else { break };
        send = ready;
        let Ok((_, mut stream)) = send.send_request(asking(path), true) else { break };
        asked += 1;
        stream.send_reset(h2::Reason::CANCEL);
        // Sometimes long enough for it to have begun.
        if asked % 4 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let ended = timeout(PATIENCE, connection).await.expect("it is not cut off").unwrap();
    assert!(ended.is_err() || asked < MANY, "{asked} requests were taken back, and nothing came of it");
    place.serves().await;
}

/// Nothing of an answer is taken: by a window of one byte, and by not reading.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes() {
    let place = Place::new().await;
    let mut deaf = place.dial().await;
    // More than all buffers between can hold.
    let many = "GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n".repeat(200);
    deaf.write_all(many.as_bytes()).await.unwrap();
    let narrow = h2::client::Builder::new()
        .initial_window_size(1)
        .handshake::<_, Bytes>(place.dial().await)
        .await
        .unwrap();
    let connection = tokio::spawn(narrow.1);
    let mut send = narrow.0.ready().await.unwrap();
    let (answer, _) = send.send_request(asking("/openapi.json"), true).unwrap();
    let answer: Response<h2::RecvStream> = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let _ = timeout(PATIENCE, connection).await.expect("it is not cut off");
    let since = Instant::now();
    while place.refused("connection-stall") < 2.0 {
        assert!(since.elapsed() < PATIENCE, "it is not cut off");
        sleep(Duration::from_millis(50)).await;
    }
    // What is in the buffers is read, and then it ends before it is whole.
    let read = rest(&mut deaf).await;
    assert!(read.matches("HTTP/1.1 200").count() < 200);
    place.serves().await;
}

/// One address may have so many connections; what it gives back it may have again.
#[tokio::test(flavor = "multi_thread")]
async fn many_connections() {
    let place = Place::new().await;
    let most = hasty().of_one_address;
    let mut held = join_all((0..2 * most).map(|_| place.dial())).await;
    // Those that were one too many are hung up on at once; the others when they have said nothing for a second.
    let ended = join_all(held.iter_mut().map(|stream| async {
        let since = Instant::now();
        rest(stream).await;
        since.elapsed()
    }));
    let ended = ended.await;
    assert_eq!(place.refused("address-connections"), most as f64);
    assert_eq!(place.refused("header-seconds"), most as f64);
    assert_eq!(ended.len(), 2 * most);
    place.serves().await;
}
