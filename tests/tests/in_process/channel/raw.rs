//! gRPC whose messages are bytes as they are: for peers that do not speak as agreed, or speak what is not known yet.
use super::harness::Cluster;
use futures_util::future::BoxFuture;
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _};
use rhyzome_pki::{Identity, ServerCertificate, grpc_server_config};
use rhyzome_proto::v1::WhoAmIResponse;
use rhyzome_tests::given::Dice;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::task::{Context, Poll};
use std::time::SystemTime;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

/// Messages are bytes.
#[derive(Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// A call that says these messages and then no more; what is answered.
pub async fn call(
    cluster: &Cluster,
    identity: &Identity,
    path: &'static str,
    messages: mpsc::Receiver<Vec<u8>>,
) -> Result<Streaming<Vec<u8>>, Status> {
    let channel = cluster.dial(cluster.tls(identity)).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(path);
    let answer = grpc.streaming(Request::new(ReceiverStream::new(messages)), path, Raw).await?;
    Ok(answer.into_inner())
}

// === chance ===

/// Bytes by chance.
pub fn noise(dice: &mut Dice, most: u64) -> Vec<u8> {
    (0..dice.below(most)).map(|_| dice.roll() as u8).collect()
}

/// One of these, mostly with something wrong about it.
pub fn mangled(dice: &mut Dice, samples: &[Vec<u8>]) -> Vec<u8> {
    let pick = |dice: &mut Dice| samples[usize::try_from(dice.below(samples.len() as u64)).unwrap()].clone();
    let mut bytes = pick(dice);
    let at = |dice: &mut Dice, bytes: &[u8]| usize::try_from(dice.below(bytes.len() as u64 + 1)).unwrap();
    match dice.below(7) {
        0 => {}
        1 => return noise(dice, 200),
        2 => {
            let end = at(dice, &bytes);
            bytes.truncate(end);
        }
        3 => {
            let place = at(dice, &bytes);
            let more = noise(dice, 30);
            bytes.splice(place..place, more);
        }
        4 => bytes.extend(pick(dice)),
        _ => {
            for _ in 0..=dice.below(8) {
                let place = at(dice, &bytes);
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 1 << dice.below(8);
                }
            }
        }
    }
    bytes
}

// === panics ===

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From now on every panic of this process is noted, but for those of the tests themselves.
pub fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            if !place.starts_with("tests/") {
                PANICS.lock().unwrap().push(format!("{place}: {info}"));
            }
            before(info);
        }));
    });
}

/// There was none.
pub fn no_panic() {
    let panics = PANICS.lock().unwrap();
    assert!(panics.is_empty(), "{panics:#?}");
}

// === a false server ===

/// What a false server does with a connection, or a session.
pub enum Act {
    /// Writes this to a connection instead of speaking HTTP/2, and ends it.
    Noise(Vec<u8>),
    /// Says these in the session and ends it.
    Say(Vec<Vec<u8>>),
    /// Says these, then this status.
    Fail(Vec<Vec<u8>>, Status),
    /// Says these, and stays.
    Stay(Vec<Vec<u8>>),
}

/// By the number of the connection that a session came on.
pub type Script = Arc<dyn Fn(usize) -> Act + Send + Sync>;

/// A server with the cluster's certificate that does as its script says.
pub struct FalseServer {
    pub address: SocketAddr,
    /// Streams that agents brought and that are open.
    pub attached: Arc<AtomicUsize>,
    _stop: DropGuard,
}

#[derive(Clone)]
struct Control {
    cluster_id: String,
    script: Script,
    number: Arc<AtomicUsize>,
    attached: Arc<AtomicUsize>,
}

impl NamedService for Control {
    const NAME: &'static str = "rhyzome.v1.Control";
}

impl FalseServer {
    pub async fn start(cluster: &Cluster, script: Script) -> FalseServer {
        let names = ["127.0.0.1".to_owned()];
        let shown = cluster.authority.issue_server(&names, SystemTime::now()).unwrap();
        let tls = grpc_server_config(ServerCertificate::new(&shown).unwrap(), &cluster.authority.trust_pem());
        let tls = TlsAcceptor::from(tls.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let control = Control {
            cluster_id: cluster.authority.cluster_id().into(),
            script: script.clone(),
            number: Arc::default(),
            attached: Arc::default(),
        };
        let (number, attached) = (control.number.clone(), control.attached.clone());
        let (done, connections) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let accept = async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut connection) = tls.accept(tcp).await else { continue };
                match script(number.load(Ordering::SeqCst)) {
                    Act::Noise(noise) => {
                        number.fetch_add(1, Ordering::SeqCst);
                        // The agent may hang up before all is said.
                        let _ = connection.write_all(&noise).await;
                        let _ = connection.shutdown().await;
                    }
                    _ => drop(done.send(Ok::<_, std::io::Error>(connection)).await),
                }
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
        let server = tonic::transport::Server::builder().add_service(control);
        let serve = server
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.clone().cancelled_owned());
        tokio::spawn(serve);
        FalseServer { address, attached, _stop: stop.drop_guard() }
    }
}

impl Service<http::Request<Body>> for Control {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let control = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw);
            Ok(match request.uri().path() {
                "/rhyzome.v1.Control/WhoAmI" => {
                    let who = WhoAmIResponse { cluster_id: control.cluster_id, ..WhoAmIResponse::default() };
                    let answer = who.encode_to_vec();
                    let who =
                        move |_: Request<Vec<u8>>| std::future::ready(Ok(Response::new(answer.clone())));
                    grpc.unary(tower::service_fn(who), request).await
                }
                "/rhyzome.v1.Control/Attach" => {
                    let attached = control.attached;
                    let attach = move |request: Request<Streaming<Vec<u8>>>| {
                        std::future::ready(Ok(Response::new(hold(request.into_inner(), attached.clone()))))
                    };
                    grpc.streaming(tower::service_fn(attach), request).await
                }
                _ => {
                    let act = (control.script)(control.number.fetch_add(1, Ordering::SeqCst));
                    let session = move |request: Request<Streaming<Vec<u8>>>| {
                        std::future::ready(Ok(Response::new(say(request.into_inner(), act_of(&act)))))
                    };
                    grpc.streaming(tower::service_fn(session), request).await
                }
            })
        })
    }
}

type Said = ReceiverStream<Result<Vec<u8>, Status>>;

/// What is said, what status ends it, and whether it ends at all.
fn act_of(act: &Act) -> (Vec<Vec<u8>>, Option<Status>, bool) {
    match act {
        Act::Noise(_) => (Vec::new(), None, false),
        Act::Say(messages) => (messages.clone(), None, false),
        Act::Fail(messages, status) => (messages.clone(), Some(status.clone()), false),
        Act::Stay(messages) => (messages.clone(), None, true),
    }
}

fn say(up: Streaming<Vec<u8>>, (messages, status, stays): (Vec<Vec<u8>>, Option<Status>, bool)) -> Said {
    let (said, down) = mpsc::channel(4);
    tokio::spawn(async move {
        let all = messages.into_iter().map(Ok).chain(status.map(Err));
        for message in all {
            if said.send(message).await.is_err() {
                return;
            }
        }
        if stays {
            listen(up).await;
        }
    });
    ReceiverStream::new(down)
}

async fn listen(mut up: Streaming<Vec<u8>>) {
    while let Ok(Some(_)) = up.message().await {}
}

/// Takes what is brought, and says nothing.
fn hold(up: Streaming<Vec<u8>>, attached: Arc<AtomicUsize>) -> Said {
    let (said, down) = mpsc::channel(1);
    tokio::spawn(async move {
        attached.fetch_add(1, Ordering::SeqCst);
        tokio::select! {
            () = listen(up) => {}
            () = said.closed() => {}
        }
        attached.fetch_sub(1, Ordering::SeqCst);
    });
    ReceiverStream::new(down)
}
