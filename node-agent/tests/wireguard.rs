//! Tunnels on a real kernel, with our device on one end and Debian's on the other. Needs root; a missing tool is an error.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use prost::Message as _;
use rhyzome_agent::drivers::DriverError;
use rhyzome_agent::env::Env;
use rhyzome_agent::host::netns;
use rhyzome_agent::host::process::ProcessId;
use rhyzome_agent::host::tools;
use rhyzome_agent::names;
use rhyzome_agent::plain::{Ordered, OrderedAll, Plains};
use rhyzome_agent::wireguard::engine::{self, Wanted};
use rhyzome_agent::wireguard::kernel::Kernel;
use rhyzome_agent::wireguard::process::Userspace;
use rhyzome_agent::wireguard::{self, room::Room};
use rhyzome_proto::v1::{OrderSecret, WireguardPeerOrder, WireguardPeerReport, WireguardServerOrder};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use support::guest::Guest;
use support::tunnel::{self, Stream};
use support::{Node, network, on_a_node, run};

const SERVER: &str = "wgs_1";
const PORT: u32 = 51820;
/// The node, on the wire to its clients.
const NODE: &str = "10.250.0.1";

fn wg(words: &[&str], input: &str) -> String {
    let mut child = Command::new("wg")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("wg cannot be started ({error}): install wireguard-tools"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "wg {words:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn key_pair() -> (String, String) {
    let private = wg(&["genkey"], "");
    let public = wg(&["pubkey"], &private);
    (private, public)
}

/// Somebody with a laptop: a namespace with a cable to the node, and Debian's own tunnel.
struct Client {
    namespace: String,
    file: PathBuf,
    key: String,
    public: String,
    address: String,
    is_up: bool,
}

impl Client {
    fn new(node: &Node, number: u8) -> Self {
        let tag = &names::short_digest(&format!("{}{number}", node.state.path().display()))[..8];
        let namespace = format!("wgc{tag}");
        netns::create(&namespace).unwrap();
        let (outer, inner) = (format!("n{tag}"), format!("c{tag}"));
        run(&["ip", "link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &namespace]);
        run(&["ip", "link", "set", &outer, "up"]);
        let gateway = format!("10.250.{number}.1/24");
        run(&["ip", "addr", "add", &gateway, "dev", &outer]);
        let inside = |words: &[&str]| run(&[&["ip", "-n", &namespace][..], words].concat());
        inside(&["addr", "add", &format!("10.250.{number}.2/24"), "dev", &inner]);
        inside(&["link", "set", "lo", "up"]);
        inside(&["link", "set", &inner, "up"]);
        inside(&["route", "add", "default", "via", &format!("10.250.{number}.1")]);
        let (key, public) = key_pair();
        let file = node.state.path().join(format!("w{tag}.conf"));
        let address = format!("10.9.0.{}", 1 + number);
        Client { namespace, file, key, public, address, is_up: false }
    }

    /// What a user gets and gives to `wg-quick`.
    fn up(&mut self, server: &str, key: &str, preshared: &str, networks: &str) {
        let text = format!(
            "[Interface]\nPrivateKey = {key}\nAddress = {}/32\n\n[Peer]\nPublicKey = {server}\n{preshared}\
             Endpoint = {NODE}:{PORT}\nAllowedIPs = {networks}\n",
            self.address
        );
        fs::write(&self.file, text).unwrap();
        fs::set_permissions(&self.file, fs::Permissions::from_mode(0o600)).unwrap();
        self.run(&["wg-quick", "up", self.file.to_str().unwrap()]);
        self.is_up = true;
    }

    fn down(&mut self) {
        if std::mem::take(&mut self.is_up) {
            self.run(&["wg-quick", "down", self.file.to_str().unwrap()]);
        }
    }

    fn run(&self, words: &[&str]) -> String {
        run(&[&["ip", "netns", "exec", &self.namespace][..], words].concat())
    }

    fn pings(&self, address: &str, seconds: u32) -> bool {
        let wait = seconds.to_string();
        let words = ["netns", "exec", &self.namespace, "ping", "-c1", "-w", &wait, address];
        Command::new("ip").args(words).stdout(Stdio::null()).status().unwrap().success()
    }

    /// Asks for the address of a name.
    fn resolve(&self, server: Ipv4Addr, name: &str) -> Option<Ipv4Addr> {
        let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len()).unwrap());
            question.extend_from_slice(label.as_bytes());
        }
        question.extend_from_slice(&[0, 0, 1, 0, 1]);
        let answer = netns::run_in(&self.namespace, || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.send_to(&question, SocketAddr::from((server, 53)))?;
            let mut answer = vec![0; 512];
            let length = socket.recv(&mut answer)?;
            answer.truncate(length);
            Ok(answer)
        });
        let answer = answer.ok()?;
        (answer[7] == 1).then(|| <[u8; 4]>::try_from(&answer[answer.len() - 4..]).unwrap().into())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let file = self.file.to_str().unwrap();
        if self.is_up {
            let words = ["netns", "exec", &self.namespace, "wg-quick", "down", file];
            let _ = Command::new("ip").args(words).status();
        }
        netns::delete(&self.namespace).unwrap();
    }
}

/// An agent, as far as tunnels go: its drivers, and what was ordered.
struct Agent {
    room: Arc<Room>,
    drivers: Plains,
    clock: Arc<AtomicU64>,
    orders: BTreeMap<(&'static str, String), Ordered>,
}

impl Agent {
    fn start(
        state: &Path,
        orders: BTreeMap<(&'static str, String), Ordered>,
        clock: &Arc<AtomicU64>,
    ) -> Self {
        let now = clock.clone();
        let time = move || SystemTime::UNIX_EPOCH + Duration::from_millis(now.load(Ordering::Relaxed));
        let env = Env::simulated(Arc::new(time), Arc::new(|| 0.5));
        let device = Userspace::by(state, env!("CARGO_BIN_EXE_rhyzome-agent").into());
        let room = Arc::new(Room::with_engine(state, env, Box::new(device)));
        Agent { drivers: wireguard::of_room(&room), room, clock: clock.clone(), orders }
    }

    /// Another one in its place, with the same orders.
    fn again(self, state: &Path) -> Self {
        let Agent { orders, clock, .. } = self;
        Agent::start(state, orders, &clock)
    }

    fn order(&mut self, kind: &'static str, id: &str, ordered: Ordered) {
        self.orders.insert((kind, id.to_owned()), ordered);
    }

    /// Looks and makes until all is as ordered, as the agent's loop does; what had been changed by hand.
    fn settle(&self) -> Result<Vec<String>, DriverError> {
        let mut repaired = Vec::new();
        for _ in 0..4 {
            let mut is_held = true;
            let seen = self.look();
            // Devices first: peers need theirs.
            let all = self.drivers.iter().flat_map(|driver| {
                let of_kind = self.orders.iter().filter(|((kind, _), _)| *kind == driver.kind());
                of_kind.map(move |((kind, id), ordered)| (driver, kind, id, ordered))
            });
            for (driver, kind, id, ordered) in all {
                let held = seen[kind].get(id).is_some_and(|seen| seen.in_force.is_some());
                if ordered.remove {
                    driver.take_away(id)?;
                } else if !held || self.is_over(kind, id) {
                    is_held = false;
                    repaired.extend(driver.make(id, ordered)?.into_iter().map(|it| format!("{it:?}")));
                }
            }
            if is_held {
                return Ok(repaired);
            }
        }
        panic!("it is never as it should be: {:?}", self.look());
    }

    fn is_over(&self, kind: &str, id: &str) -> bool {
        let driver = self.drivers.iter().find(|driver| driver.kind() == kind).unwrap();
        let seen =
            driver.look(id, self.orders.iter().find(|((_, it), _)| it == id).map(|(_, it)| it)).unwrap();
        seen.and_then(|seen| seen.until_ms).is_some_and(|until| until <= self.clock.load(Ordering::Relaxed))
    }

    fn look(&self) -> BTreeMap<&'static str, BTreeMap<String, rhyzome_agent::plain::ObservedPlain>> {
        let look = |driver: &Arc<dyn rhyzome_agent::plain::Plain>| {
            let of_kind = self.orders.iter().filter(|((kind, _), _)| *kind == driver.kind());
            let ordered: OrderedAll = of_kind.map(|((_, id), it)| (id.clone(), it.clone())).collect();
            (driver.kind(), driver.look_at_all(&ordered).unwrap())
        };
        self.drivers.iter().map(look).collect()
    }

    fn told(&self, id: &str) -> WireguardPeerReport {
        let report = self.look()["wireguard-peer"][id].report.clone();
        WireguardPeerReport::decode(report.as_slice()).unwrap()
    }
}

fn secret(marker: &str, value: &str) -> OrderSecret {
    OrderSecret { marker: marker.into(), value: value.into() }
}

fn server(key: &(String, String), change: impl FnOnce(&mut WireguardServerOrder)) -> Ordered {
    let mut order = WireguardServerOrder {
        private_key: "sealed:sec_1".into(),
        public_key: key.1.clone(),
        listen_port: PORT,
        addresses: vec!["10.9.0.1/24".into()],
        enabled: true,
        ..WireguardServerOrder::default()
    };
    change(&mut order);
    Ordered { secrets: vec![secret("sealed:sec_1", &key.0)], ..Ordered::from(order.encode_to_vec()) }
}

fn peer(client: &Client, change: impl FnOnce(&mut WireguardPeerOrder)) -> Ordered {
    let mut order = WireguardPeerOrder {
        server_id: SERVER.into(),
        public_key: client.public.clone(),
        allowed_ips: vec![format!("{}/32", client.address)],
        enabled: true,
        ..WireguardPeerOrder::default()
    };
    change(&mut order);
    Ordered::from(order.encode_to_vec())
}

/// Where `wg` finds our device.
fn shown() -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{}.sock", names::wireguard(SERVER)))
}

/// Whatever a test that fails has left.
struct Leftover(PathBuf);

impl Drop for Leftover {
    fn drop(&mut self) {
        // Only there where `wg` looks while a test that asks it goes on.
        if fs::read_link(shown()).is_ok_and(|to| to.starts_with(&self.0)) {
            fs::remove_file(shown()).unwrap();
        }
        tunnel::end_devices(&self.0);
    }
}

fn begin(node: &Node) -> (Agent, (String, String), Leftover) {
    let key = key_pair();
    run(&["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]);
    run(&["ip", "addr", "add", &format!("{NODE}/32"), "dev", "lo"]);
    let clock = Arc::new(AtomicU64::new(1_000_000));
    let mut agent = Agent::start(node.state.path(), BTreeMap::new(), &clock);
    agent.order("wireguard-server", SERVER, server(&key, |_| {}));
    (agent, key, Leftover(node.state.path().to_owned()))
}

/// The process that is the device.
fn device(state: &Path) -> ProcessId {
    tunnel::device(&names::wireguard_socket(state, SERVER))
}

fn end(agent: &Agent, state: &Path) {
    for (kind, id) in agent.orders.keys().rev() {
        agent.drivers.iter().find(|driver| driver.kind() == *kind).unwrap().take_away(id).unwrap();
    }
    for (kind, id) in agent.orders.keys() {
        agent.drivers.iter().find(|driver| driver.kind() == *kind).unwrap().take_away(id).unwrap();
    }
    assert!(!names::wireguard_socket(state, SERVER).exists());
    assert!(agent.look().values().all(BTreeMap::is_empty));
    let rules = run(&["nft", "list", "ruleset"]);
    assert!(!rules.contains("wireguard"), "{rules}");
    let links = run(&["ip", "link"]);
    assert!(!links.contains(names::WIREGUARD_PREFIX), "{links}");
}

#[test]
fn a_peer_gets_through_and_whoever_is_none_gets_nothing() {
    on_a_node(async |node| {
        let (mut agent, key, _leftover) = begin(node);
        let (mut client, mut stranger) = (Client::new(node, 1), Client::new(node, 2));
        let preshared = wg(&["genpsk"], "");
        let mut first = peer(&client, |order| order.preshared_key = "sealed:sec_2".into());
        first.secrets.push(secret("sealed:sec_2", &preshared));
        agent.order("wireguard-peer", "wgp_1", first.clone());
        agent.settle().unwrap();
        let report = agent.look()["wireguard-server"][SERVER].clone();
        assert!(!format!("{report:?}").contains(&key.0), "a key is shown");
        client.up(&key.1, &client.key.clone(), &format!("PresharedKey = {preshared}\n"), "10.9.0.0/24");
        assert!(client.pings("10.9.0.1", 10));
        let told = agent.told("wgp_1");
        assert!(told.endpoint.starts_with("10.250.1.2:") && told.last_handshake_ms > 0, "{told:?}");

        // A key that nobody ordered, and the right key without the preshared one.
        stranger.up(&key.1, &stranger.key.clone(), "", "10.9.0.0/24");
        assert!(!stranger.pings("10.9.0.1", 2));
        stranger.down();
        client.down();
        client.up(&key.1, &client.key.clone(), "", "10.9.0.0/24");
        assert!(!client.pings("10.9.0.1", 2));
        client.down();

        // One more peer is one message, and the first one's session goes on.
        client.up(&key.1, &client.key.clone(), &format!("PresharedKey = {preshared}\n"), "10.9.0.0/24");
        assert!(client.pings("10.9.0.1", 10));
        let (stream, before) = (Stream::start(&client.namespace, "10.9.0.1"), agent.room.messages());
        agent.order("wireguard-peer", "wgp_2", peer(&stranger, |_| {}));
        agent.settle().unwrap();
        assert_eq!(agent.room.messages() - before, 1);
        stranger.up(&key.1, &stranger.key.clone(), "", "10.9.0.0/24");
        assert!(stranger.pings("10.9.0.1", 10));
        let (sent, back) = stream.stop();
        assert!(sent > 0 && sent - back <= 1, "{back} of {sent}");

        // The node itself is not what peers reach.
        let listener = std::net::TcpListener::bind("10.9.0.1:7070").unwrap();
        let refused = netns::run_in(&stranger.namespace, || {
            std::net::TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_secs(1)).map(drop)
        });
        assert!(refused.is_err());

        // Switched off, and switched on again.
        agent.order("wireguard-peer", "wgp_2", peer(&stranger, |order| order.enabled = false));
        agent.settle().unwrap();
        assert!(!stranger.pings("10.9.0.1", 2));
        assert!(client.pings("10.9.0.1", 10));
        // Until it expires, by the agent alone.
        let soon = i64::try_from(agent.clock.load(Ordering::Relaxed)).unwrap() + 5_000;
        agent.order("wireguard-peer", "wgp_2", peer(&stranger, |order| order.expires_at_ms = soon));
        agent.settle().unwrap();
        assert!(stranger.pings("10.9.0.1", 60));
        agent.clock.fetch_add(5_000, Ordering::Relaxed);
        agent.settle().unwrap();
        assert!(!stranger.pings("10.9.0.1", 2));
        stranger.down();
        client.down();
        end(&agent, node.state.path());
    });
}

/// What is heard while a device takes its socket down to listen on another one is no reason to end.
#[test]
fn a_device_that_listens_anew_under_a_flood_goes_on() {
    on_a_node(async |node| {
        let (mut agent, key, _leftover) = begin(node);
        let mut client = Client::new(node, 1);
        agent.order("wireguard-peer", "wgp_1", peer(&client, |_| {}));
        agent.settle().unwrap();
        client.up(&key.1, &client.key.clone(), "", "10.9.0.0/24");
        assert!(client.pings("10.9.0.1", 10));
        let process = device(node.state.path());
        // The node speaks too, so that the client learns of another port.
        let ping = |words: &[&str]| Command::new("ip").args(words).stdout(Stdio::null()).spawn().unwrap();
        let flood = ["ping", "-f", "-q", "-w", "60", "-s", "1000"];
        let inside = ["netns", "exec", &client.namespace];
        let mut floods = vec![ping(&[&inside[..], &flood, &["10.9.0.1"]].concat())];
        floods.push(
            Command::new("ping")
                .args(&flood[1..])
                .arg(&client.address)
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
        for port in (0..40).map(|number| PORT + number % 2) {
            agent.order("wireguard-server", SERVER, server(&key, |order| order.listen_port = port));
            // The socket before the last one may have this port for a moment still.
            let deadline = Instant::now() + Duration::from_secs(10);
            while let Err(error) = agent.settle() {
                assert!(Instant::now() < deadline && error.to_string().contains("in use"), "{error}");
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        for mut flood in floods {
            flood.kill().unwrap();
            flood.wait().unwrap();
        }
        assert!(client.pings("10.9.0.1", 20));
        assert_eq!(device(node.state.path()), process, "the device ended");
        client.down();
        end(&agent, node.state.path());
    });
}

#[test]
fn an_agent_that_ends_loses_no_packet_and_what_a_reboot_took_comes_back() {
    on_a_node(async |node| {
        let state = node.state.path();
        let (mut agent, key, _leftover) = begin(node);
        let mut client = Client::new(node, 1);
        let behind = |order: &mut WireguardPeerOrder| order.allowed_ips.push("10.77.0.0/16".into());
        agent.order("wireguard-peer", "wgp_1", peer(&client, behind));
        agent.settle().unwrap();
        client.up(&key.1, &client.key.clone(), "", "10.9.0.0/24");
        assert!(client.pings("10.9.0.1", 10));
        let routes = || run(&["ip", "route"]);
        assert!(routes().contains(&format!("10.77.0.0/16 dev {}", names::wireguard(SERVER))), "{}", routes());

        let (process, stream) = (device(state), Stream::start(&client.namespace, "10.9.0.1"));
        for _ in 0..3 {
            agent = agent.again(state);
            assert_eq!(agent.settle().unwrap(), Vec::<String>::new());
        }
        assert_eq!(agent.room.messages(), 0, "what is as it should be is not touched");
        let (sent, back) = stream.stop();
        assert!(sent > 0 && sent - back <= 1, "{back} of {sent}");
        assert_eq!(device(state), process);

        // By hand: a key of somebody, a peer that is taken off, an address, a port. Seen, and put right.
        let _ = fs::remove_file(shown());
        fs::create_dir_all("/var/run/wireguard").unwrap();
        std::os::unix::fs::symlink(names::wireguard_socket(state, SERVER), shown()).unwrap();
        let (name, by_hand) = (names::wireguard(SERVER), key_pair().1);
        wg(&["set", &name, "peer", &client.public, "remove"], "");
        wg(&["set", &name, "peer", &by_hand, "allowed-ips", "10.9.0.200/32"], "");
        run(&["ip", "addr", "add", "10.8.8.8/32", "dev", &name]);
        run(&["ip", "route", "del", "10.77.0.0/16"]);
        agent.look();
        agent.clock.fetch_add(31_000, Ordering::Relaxed);
        // As the agent does after a restart: it does not know any more that it was as it should be. Then it does.
        let first = agent.settle().unwrap();
        let shown = wg(&["show", &name, "peers"], "");
        assert_eq!(shown, client.public, "{first:?}");
        assert!(client.pings("10.9.0.1", 60), "its session is gone: it begins another after a while");
        assert!(routes().contains("10.77.0.0/16") && !run(&["ip", "addr"]).contains("10.8.8.8"));
        wg(&["set", &name, "peer", &client.public, "remove"], "");
        run(&["ip", "link", "set", &name, "down"]);
        let repaired = agent.settle().unwrap().join("\n");
        assert!(repaired.contains("the peer ") && repaired.contains("it is down"), "{repaired}");
        assert!(client.pings("10.9.0.1", 60), "its session is gone: it begins another after a while");

        // The machine goes down: process, interface and routes are gone; the ledger is not.
        process.end(Duration::from_secs(5)).unwrap();
        // Its interface goes with the last of its threads.
        let deadline = Instant::now() + Duration::from_secs(10);
        while run(&["ip", "link"]).contains(&name) {
            assert!(Instant::now() < deadline, "the interface is left");
            std::thread::sleep(Duration::from_millis(2));
        }
        let agent = agent.again(state);
        agent.settle().unwrap();
        assert_eq!(agent.room.messages(), 1, "all that it holds comes in one message");
        assert!(client.pings("10.9.0.1", 60), "the client comes back");
        assert!(routes().contains("10.77.0.0/16"));
        client.down();
        end(&agent, state);
    });
}

#[test]
fn a_roaming_user_reaches_guests_of_a_network_by_address_and_by_name() {
    on_a_node(async |node| {
        let (mut agent, key, _leftover) = begin(node);
        let (one, other) = (network(1), network(1));
        for network in [&one, &other] {
            node.driver.apply(network).await.unwrap();
        }
        let into = |order: &mut WireguardServerOrder| order.network_id.clone_from(&one.id);
        agent.order("wireguard-server", SERVER, server(&key, into));
        let mut client = Client::new(node, 1);
        agent.order("wireguard-peer", "wgp_1", peer(&client, |_| {}));
        agent.settle().unwrap();
        client.up(&key.1, &client.key.clone(), "", "10.9.0.0/24, 10.0.0.0/24");
        assert!(client.pings("10.0.0.1", 10), "the gateway");
        let found = client.resolve(one.gateway, "web-1.lan.example");
        assert_eq!(found, Some(one.ports[0].address));

        // A guest of this network hears it; one of the other network, with the same address, does not.
        let mut guest = Guest::new(&one, &one.ports[0]);
        let gateway = guest.gateway_mac();
        let say = || {
            netns::run_in(&client.namespace, || {
                let socket = UdpSocket::bind("0.0.0.0:4321")?;
                socket.send_to(b"hello", SocketAddr::from((one.ports[0].address, 9)))
            })
        };
        say().unwrap();
        let heard = guest.wait("a packet of the peer", |frame| {
            support::frames::read_udp(frame)
                .filter(|(_, _, text)| *text == b"hello")
                .map(|_| frame[26..30].to_vec())
        });
        assert_eq!(heard, [10, 9, 0, 2], "it comes from the peer's own address");
        let answer = netns::run_in(&client.namespace, || {
            let socket = UdpSocket::bind("0.0.0.0:4322")?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            guest.say(gateway, (Ipv4Addr::new(10, 9, 0, 2), 4322), "and back");
            let mut bytes = [0; 64];
            let length = socket.recv(&mut bytes)?;
            Ok(bytes[..length].to_vec())
        });
        assert_eq!(answer.unwrap(), b"and back");

        // Networks are IPv4, and a network of the node is not a tunnel's to take.
        let v6 = |order: &mut WireguardServerOrder| {
            order.network_id.clone_from(&one.id);
            order.addresses.push("fd00::1/64".into());
        };
        agent.order("wireguard-server", SERVER, server(&key, v6));
        assert!(matches!(agent.settle(), Err(DriverError::Permanent(why)) if why.contains("IPv4")));
        agent.order("wireguard-server", SERVER, server(&key, into));
        agent.order(
            "wireguard-peer",
            "wgp_1",
            peer(&client, |order| order.allowed_ips = vec!["10.0.0.0/25".into()]),
        );
        assert!(matches!(agent.settle(), Err(DriverError::Permanent(why)) if why.contains("10.0.0.0/25")));
        client.down();
        end(&agent, node.state.path());
    });
}

/// What is wanted is what there is, or the answer says what to do. Both kinds by what this machine has.
#[test]
fn the_kind_of_device_is_what_is_configured_or_nothing() {
    on_a_node(async |node| {
        let state = node.state.path();
        let has_kernel = Kernel::probe().is_ok();
        assert_eq!(engine::choose(Wanted::Userspace, state).unwrap().word(), "userspace");
        assert_eq!(engine::probe(Wanted::Userspace).unwrap(), "userspace (configured)");
        let auto = engine::choose(Wanted::Auto, state).unwrap().word();
        assert_eq!(auto, if has_kernel { "kernel" } else { "userspace" });
        let (key, _leftover) = (key_pair(), Leftover(state.to_owned()));
        let drivers = wireguard::drivers(state, &Env::system(), Wanted::Kernel);
        let servers = drivers.iter().find(|driver| driver.kind() == "wireguard-server").unwrap();
        let made = servers.make(SERVER, &server(&key, |_| {}));
        let tool = tools::probe(Wanted::Kernel).into_iter().find(|tool| tool.name == "wireguard").unwrap();
        if has_kernel {
            made.unwrap();
            assert_eq!((tool.available, tool.detail.as_str()), (true, "kernel (configured)"));
        } else {
            let Err(DriverError::Retry(why)) = made else { panic!("{made:?}") };
            assert_eq!(why, format!("missing-capability wireguard: {}", tool.detail));
            assert!(!tool.available);
            for words in ["load the kernel module wireguard", "set `wireguard` to auto or userspace"] {
                assert!(why.contains(words), "{why}");
            }
        }
        servers.take_away(SERVER).unwrap_or_else(|error| assert!(!has_kernel, "{error}"));
    });
}
