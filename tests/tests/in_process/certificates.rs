//! People who come by certificates, over real TLS: whose counts, whose does not, and why they are told so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};
use rhyzome_api::auth::{AuthFile, Authenticators, Sessions};
use rhyzome_api::limits::ConnectionLimits;
use rhyzome_api::outbound::{Limits, Outbound, Rules, SystemNames};
use rhyzome_pki::{Authority, NodeKey, ServerCertificate, rest_server_config_asking};
use rhyzome_tests::face::Face;
use rhyzome_tests::world::{Engine, World};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// For what is seen within a second or two.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// An authority of people.
struct People {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl People {
    fn new(name: &str) -> People {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        People { pem, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Card {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2060, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::CommonName, "Anna");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "staff");
        params.subject_alt_names = vec![SanType::Rfc822Name("anna@acme.example".try_into().unwrap())];
        params.serial_number = Some(SerialNumber::from(7_u64));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Card { chain: vec![leaf.der().clone()], key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() }
    }

    fn list(&self, revoked: &[u64], until: i32) -> String {
        let one = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(one).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// What somebody shows, and the key with which they do.
struct Card {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Shows it, whether the key is its or not.
#[derive(Debug)]
struct Shows(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// A server that takes certificates.
struct Door {
    at: std::net::SocketAddr,
    client: rustls::RootCertStore,
    cluster: Authority,
    folder: tempfile::TempDir,
    people: People,
    _open: rhyzome_tests::door::Door,
    _world: World,
}

/// Written beside and moved there, so that it is another file each time.
fn write(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

impl Door {
    async fn new(more: Value) -> Door {
        let world = World::new(Engine::Sqlite).await;
        let (folder, people) = (tempfile::tempdir().unwrap(), People::new("People of a test"));
        let now = SystemTime::now();
        let cluster = Authority::open_or_create(&folder.path().join("pki"), now).unwrap();
        // As somebody may who means it too well: nodes are signed by an authority that is believed here.
        write(&folder.path().join("ca.pem"), &format!("{}{}", people.pem, cluster.trust_pem()));
        write(&folder.path().join("crl.pem"), &people.list(&[], 2060));
        let mut entry = json!({
            "type": "certificate", "name": "cards", "ca": folder.path().join("ca.pem"),
            "operators": { "groups": ["ops"] }, "groups": { "staff": "ops" },
        });
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        if entry["crl"] == true {
            entry["crl"] = json!(folder.path().join("crl.pem"));
        }
        let file: AuthFile = serde_json::from_value(json!({ "authenticators": [entry] })).unwrap();
        let outbound = Outbound::new(Rules::default(), Limits::default(), Arc::new(SystemNames)).unwrap();
        let env = world.store.env();
        let list = file.resolve().unwrap().make(env, &Arc::new(outbound), &Arc::<Sessions>::default());
        let known = Authenticators::new(list.unwrap());
        let authorities = known.wants_certificates(None).unwrap();
        let router = Face::knowing(&world, known).router();
        let shown =
            ServerCertificate::new(&cluster.issue_server(&["127.0.0.1".into()], now).unwrap()).unwrap();
        let tls = rest_server_config_asking(shown, authorities).unwrap();
        let open = rhyzome_tests::door::Door::within(router, ConnectionLimits::default(), Some(tls));
        let mut client = rustls::RootCertStore::empty();
        let pem = cluster.trust_pem();
        for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            client.add(root.unwrap()).unwrap();
        }
        Door { at: open.address, client, cluster, folder, people, _open: open, _world: world }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn dial(&self, card: Option<&Card>) -> std::io::Result<Line> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = card.map(|card| {
            let key = provider.key_provider.load_private_key(card.key.clone_key()).unwrap();
            Arc::new(CertifiedKey::new(card.chain.clone(), key))
        });
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.client.clone())
            .with_client_cert_resolver(Arc::new(Shows(key)));
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tcp = TcpStream::connect(self.at).await?;
        Ok(Line(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?))
    }

    /// The answer to whoever shows this: status, and body.
    async fn ask(&self, card: &Card) -> (u16, Value) {
        self.dial(Some(card)).await.unwrap().ask("").await.unwrap()
    }

    /// They are not let in, and told why.
    async fn refuses(&self, card: &Card, why: &str) {
        let (status, body) = self.ask(card).await;
        assert_eq!(status, 401, "{body:#}");
        assert!(body["detail"].as_str().unwrap().contains(why), "{body:#}");
    }
}

/// A connection.
struct Line(TlsStream<TcpStream>);

impl Line {
    /// `GET /v1/whoami` with these header lines.
    async fn ask(&mut self, headers: &str) -> std::io::Result<(u16, Value)> {
        let request = format!("GET /v1/whoami HTTP/1.1\r\nHost: api.example\r\n{headers}\r\n");
        self.0.write_all(request.as_bytes()).await?;
        let mut read = Vec::new();
        loop {
            let mut chunk = [0; 4096];
            let count = self.0.read(&mut chunk).await?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            read.extend_from_slice(&chunk[..count]);
            let text = String::from_utf8_lossy(&read).to_ascii_lowercase();
            let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let body = &read[head.len() + 4..];
            if body.len() == length.parse::<usize>().unwrap() {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return Ok((status, serde_json::from_slice(body).unwrap()));
            }
        }
    }
}

#[tokio::test]
async fn a_good_card_is_somebody_and_others_are_told_why_not() {
    let door = Door::new(json!({})).await;
    let anna = door.people.sign(|_| {});
    let (status, me) = door.ask(&anna).await;
    assert_eq!(
        (status, &me["name"], &me["operator"]),
        (200, &json!("anna@acme.example"), &json!(true)),
        "{me:#}"
    );
    assert_eq!(me["credential"], "cards/certificate");
    // Nobody has to show one.
    let (status, body) = door.dial(None).await.unwrap().ask("").await.unwrap();
    assert_eq!(status, 401, "{body:#}");

    let other = People::new("People of somebody else");
    door.refuses(&other.sign(|_| {}), "who has signed your certificate").await;
    // One that calls itself as the right one does.
    let same = People::new("People of a test");
    let (status, body) = door.ask(&same.sign(|_| {})).await;
    assert_eq!(status, 401, "{body:#}");
    door.refuses(&door.people.sign(|params| params.not_after = date_time_ymd(2021, 1, 1)), "has expired")
        .await;
    door.refuses(&door.people.sign(|params| params.not_before = date_time_ymd(2059, 1, 1)), "not good yet")
        .await;
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    for usages in [vec![ServerAuth], vec![ClientAuth, ServerAuth], vec![]] {
        let server = door.people.sign(|params| params.extended_key_usages = usages);
        door.refuses(&server, "not for clients alone").await;
    }
    door.refuses(
        &door.people.sign(|params| params.subject_alt_names.clear()),
        "one address of mail, and has 0",
    )
    .await;
    let two = door.people.sign(|params| {
        params.subject_alt_names.push(SanType::Rfc822Name("root@acme.example".try_into().unwrap()));
    });
    door.refuses(&two, "and has 2").await;
    let control = door.people.sign(|params| {
        params.subject_alt_names = vec![SanType::Rfc822Name("a\nb".try_into().unwrap())];
    });
    door.refuses(&control, "cannot be told").await;
}

#[tokio::test]
async fn what_is_open_ends_with_the_card() {
    let door = Door::new(json!({ "crl": true })).await;
    let card = door.people.sign(|_| {});
    let mut line = door.dial(Some(&card)).await.unwrap().0;
    let request = "GET /v1/events HTTP/1.1\r\nHost: api.example\r\nAccept: text/event-stream\r\n\r\n";
    line.write_all(request.as_bytes()).await.unwrap();
    let mut chunk = [0; 4096];
    let count = line.read(&mut chunk).await.unwrap();
    assert!(chunk[..count].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&chunk[..count]));
    write(&door.file("crl.pem"), &door.people.list(&[7], 2060));
    let mut all = Vec::new();
    let end = async {
        while !all.ends_with(b"0\r\n\r\n") {
            let count = line.read(&mut chunk).await.unwrap();
            all.extend_from_slice(&chunk[..count]);
            if count == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, end).await.expect("the stream goes on");
}

#[tokio::test]
async fn an_agents_card_is_nobodys() {
    let door = Door::new(json!({ "name_from": "common-name" })).await;
    let key = NodeKey::generate().unwrap();
    let leaf = door.cluster.sign_node_csr(&key.csr_pem().unwrap(), "node_1", SystemTime::now()).unwrap();
    let file = door.file("node.key");
    key.save(&file).unwrap();
    let chain = CertificateDer::pem_slice_iter(leaf.chain_pem.as_bytes()).map(Result::unwrap).collect();
    let node = Card { chain, key: PrivateKeyDer::from_pem_file(&file).unwrap() };
    door.refuses(&node, "a node or a server").await;
    let uri = SanType::URI("Rhyzome://cluster/node/node_1".try_into().unwrap());
    door.refuses(&door.people.sign(|params| params.subject_alt_names.push(uri)), "a node or a server").await;
}

#[tokio::test]
async fn what_is_revoked_ends_on_open_connections_too() {
    let door = Door::new(json!({ "crl": true })).await;
    let (anna, bert) =
        (door.people.sign(|_| {}), door.people.sign(|params| params.serial_number = Some(8_u64.into())));
    let mut line = door.dial(Some(&anna)).await.unwrap();
    assert_eq!(line.ask("").await.unwrap().0, 200);
    write(&door.file("crl.pem"), &door.people.list(&[7], 2060));
    let (status, body) = line.ask("").await.unwrap();
    assert_eq!((status, body["detail"].as_str()), (401, Some("your certificate was revoked")), "{body:#}");
    assert_eq!(door.ask(&bert).await.0, 200);
    // A list that nobody has renewed, or that cannot be read, says nothing: then nobody gets in.
    write(&door.file("crl.pem"), &door.people.list(&[7], 2022));
    assert_eq!(door.ask(&bert).await.0, 503);
    write(&door.file("crl.pem"), "none");
    assert_eq!(door.ask(&bert).await.0, 503);
    std::fs::remove_file(door.file("crl.pem")).unwrap();
    assert_eq!(door.ask(&bert).await.0, 503);
    write(&door.file("crl.pem"), &door.people.list(&[], 2060));
    assert_eq!(line.ask("").await.unwrap().0, 200);
    // Another authority, from now on.
    write(&door.file("ca.pem"), &People::new("Newer people").pem);
    assert_eq!(line.ask("").await.unwrap().0, 401);
}

#[tokio::test]
async fn a_card_counts_for_its_holder_and_for_nothing_that_a_page_asks() {
    let door = Door::new(json!({})).await;
    let (anna, bert) = (door.people.sign(|_| {}), door.people.sign(|_| {}));
    // Somebody else's, with a key of one's own.
    let stolen = Card { chain: anna.chain.clone(), key: bert.key.clone_key() };
    // With TLS 1.3 the client has said all before it hears that it is refused.
    let said = match door.dial(Some(&stolen)).await {
        Ok(mut line) => line.ask("").await.map(drop),
        Err(error) => Err(error),
    };
    assert!(said.is_err());
    let mut line = door.dial(Some(&anna)).await.unwrap();
    for (headers, status) in [
        ("Sec-Fetch-Site: cross-site\r\n", 401),
        ("Origin: https://evil.example\r\n", 401),
        ("Origin: https://api.example\r\n", 200),
        // What is said counts, and not what is shown beside it.
        ("Authorization: Bearer bogus\r\n", 401),
        ("", 200),
    ] {
        let (found, body) = line.ask(headers).await.unwrap();
        assert_eq!(found, status, "{headers}: {body:#}");
    }
}
