//! An image's bytes over a line that is cut, and that stands still.
use super::harness::{Agent, Cluster, Ledger};
use super::{big, node_is};
use futures_util::StreamExt as _;
use rhyzome_agent::drivers::DriverError;
use rhyzome_agent::drivers::image::{BlobSource, ImageDriver};
use rhyzome_agent::env::Env;
use rhyzome_agent::link::{LinkError, LinkHandle};
use rhyzome_api::store::{Asked, ImageContent};
use rhyzome_proto::v1::ImageOrder;
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

on_both!(a_fetch_that_is_cut_goes_on_where_it_was_and_holds_up_no_order);

/// More than a session says, less than the image has.
const SOON: u64 = 400_000;

/// A line to the server. Of the connections over which so much comes, the first is cut, the second stands still.
struct Line {
    address: SocketAddr,
    stands: Arc<Notify>,
    go_on: Arc<Notify>,
}

impl Line {
    async fn to(server: SocketAddr) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line =
            Line { address: listener.local_addr().unwrap(), stands: Arc::default(), go_on: Arc::default() };
        let (stands, go_on, long) = (line.stands.clone(), line.go_on.clone(), Arc::new(AtomicU64::new(0)));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(server).await.unwrap();
                let (stands, go_on, long) = (stands.clone(), go_on.clone(), long.clone());
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let down = async {
                        let (mut bytes, mut passed) = (vec![0; 16 * 1024], 0_u64);
                        while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
                            let before = passed;
                            passed += length as u64;
                            if before < SOON && passed >= SOON {
                                match long.fetch_add(1, Ordering::SeqCst) {
                                    0 => return,
                                    1 => {
                                        stands.notify_one();
                                        go_on.notified().await;
                                    }
                                    _ => {}
                                }
                            }
                            if to_client.write_all(&bytes[..length]).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::select! {
                        () = down => {}
                        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                    }
                });
            }
        });
        line
    }
}

fn retry(error: LinkError) -> DriverError {
    DriverError::Retry(error.to_string())
}

/// As the agent fetches; what it was asked for is noted.
fn source(link: LinkHandle, asked: Arc<Mutex<Vec<u64>>>) -> BlobSource {
    Arc::new(move |sha256, offset| {
        asked.lock().unwrap().push(offset);
        let link = link.clone();
        Box::pin(async move {
            let blob = link.fetch_blob(&sha256, offset).await.map_err(retry)?;
            let next = async |mut blob: rhyzome_agent::link::Blob| {
                Ok(blob.next().await.map_err(retry)?.map(|chunk| (chunk, blob)))
            };
            Ok(futures_util::stream::try_unfold(blob, next).boxed())
        })
    })
}

async fn a_fetch_that_is_cut_goes_on_where_it_was_and_holds_up_no_order(world: World) {
    let cluster = Cluster::start(world).await;
    let line = Line::to(cluster.address).await;
    let node = cluster.make_node("n1").await;
    let token = cluster.invite(&node, 60).await;
    let state = cluster.folder.path().join("n1");
    cluster.join(&token, "n1", &state).await.unwrap();
    let ledger = Ledger::at(0, 0);
    let mut agent = Agent::start_at(&cluster, line.address, &node, state.clone(), ledger, Env::system());
    agent.connected().await;
    agent.handle.node_status(big());
    node_is(&cluster, &node, "ready").await;

    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    let sha256 = rhyzome_pki::sha256_hex(&bytes);
    std::fs::write(cluster.folder.path().join("blobs").join(&sha256), &bytes).unwrap();
    let image = cluster.world.make("", "image", "tiny", json!({})).await.object.core.id;
    let size_bytes = bytes.len() as u64;
    let content = ImageContent {
        sha256: sha256.clone(),
        size_bytes,
        virtual_size_bytes: 1 << 30,
        format: "qcow2".into(),
    };
    let right = cluster.world.right("");
    cluster.store().set_image_content(&right, &image, content, &Asked::default()).await.unwrap();
    cluster.world.make("default", "instance", "one", json!({"image": "tiny"})).await;
    while agent.orders().await.is_empty() {}

    let asked = Arc::new(Mutex::new(Vec::new()));
    let driver = Arc::new(ImageDriver::new(&state, source(agent.handle.clone(), asked.clone())));
    let order = ImageOrder { sha256, size_bytes, format: "raw".into(), virtual_size_bytes: 0 };
    driver.apply(&order, Box::new(|_| {})).await.unwrap_err();
    let (again, what) = (driver.clone(), order.clone());
    let fetching = tokio::spawn(async move { again.apply(&what, Box::new(|_| {})).await });
    line.stands.notified().await;
    // While nothing of it comes, orders do.
    let two = cluster.world.make("default", "instance", "two", json!({"image": "tiny"})).await.object.core.id;
    let of_two = async {
        while !matches!(agent.event(60).await,
            rhyzome_agent::link::LinkEvent::Order(order) if order.object_id == two)
        {}
    };
    of_two.await;
    assert!(!fetching.is_finished());
    line.go_on.notify_one();
    fetching.await.unwrap().unwrap();
    let asked = asked.lock().unwrap().clone();
    assert!(asked.len() == 2 && asked[0] == 0, "{asked:?}");
    assert!(asked[1] > 0 && asked[1] <= SOON, "it began anew: {asked:?}");
    let image = driver.observe(&order.sha256).unwrap();
    assert!(image.is_whole, "{image:?}");
}
