//! The domain of a tenant: what is shown there, who is let in, and what is served.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Bytes;
use axum::http::{Request, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rhyzome_api::app::{Certificates, Tenants};
use rhyzome_api::auth::{AuthFile, Authenticators, Domains, Sessions};
use rhyzome_api::limits::ConnectionLimits;
use rhyzome_api::outbound::{Limits, Outbound, Rules, SystemNames};
use rhyzome_pki::{Authority, ServerCertificate, rest_server_config};
use rhyzome_tests::door::Door;
use rhyzome_tests::face::{Face, Reply, TOKEN};
use rhyzome_tests::given::Time;
use rhyzome_tests::on_both;
use rhyzome_tests::people::{self, knowing};
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

on_both!(
    a_domain_serves_its_tenant_and_no_other,
    each_domain_shows_its_own_certificate,
    connection_and_request_say_the_same_name,
    who_logs_in_there_is_told_of_its_own_issuer,
    a_domain_ends_with_its_tenant,
    what_is_no_pair_is_refused,
);

const ACME: &str = "/v1/tenants/acme";
const DOMAIN: &str = "api.acme.example";
const PATIENCE: u64 = 30;

/// One of several servers on one database.
struct Server {
    face: Face,
    domains: Arc<Domains>,
    known: Authenticators,
    authority: Arc<Authority>,
    _folder: tempfile::TempDir,
    _following: DropGuard,
}

impl Server {
    async fn new(world: &World) -> Server {
        let (domains, stop) =
            (Arc::new(Domains::beside(["api.example".to_owned()])), CancellationToken::new());
        domains.read(&world.store).await.unwrap();
        tokio::spawn(domains.clone().follow(world.store.clone(), stop.clone()));
        let known = Authenticators::new(people::known()).with_domains(domains.clone());
        let folder = tempfile::tempdir().unwrap();
        let now = world.store.env().now().into();
        let authority = Authority::open_or_create(&folder.path().join("pki"), now).unwrap();
        Server {
            face: Face::knowing(world, known.clone()),
            domains,
            known,
            authority: Arc::new(authority),
            _folder: folder,
            _following: stop.drop_guard(),
        }
    }

    /// It knows that this domain is a tenant's, or is nobody's.
    async fn knows(&self, domain: &str, tenant: Option<&str>) {
        until("the domain to be known", PATIENCE, async || {
            (self.domains.of(domain).as_ref().map(|one| one.tenant.as_str()) == tenant).then_some(())
        })
        .await;
    }

    async fn ask(&self, host: &str, who: &str, method: &str, path: &str, body: Value) -> Reply {
        let authorization = match who {
            "operator" => format!("Bearer {TOKEN}"),
            token if token.starts_with("rz") => format!("Bearer {token}"),
            person => format!("Is {person}"),
        };
        let headers =
            [("authorization", authorization.as_str()), ("host", host), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.face.raw(method, path, &headers, body).await
    }

    async fn get(&self, host: &str, who: &str, path: &str) -> Reply {
        self.ask(host, who, "GET", path, Value::Null).await
    }

    /// Its door, with real TLS; who comes trusts its own authority.
    fn door(&self, world: &World) -> Door {
        let own = self
            .authority
            .issue_server(&["api.example".into(), "127.0.0.1".into()], world.store.env().now().into())
            .unwrap();
        let own = rest_server_config(ServerCertificate::new(&own).unwrap()).unwrap();
        let tenants = Tenants::new(world.store.clone(), self.authority.clone(), self.known.clone());
        let shown = Certificates::of_server(own).with_tenants(tenants);
        Door::showing(self.face.router(), ConnectionLimits::default(), Some(shown))
    }
}

/// The tenant with its domain, its own person `ann`, and `otto`, whom the whole server knows.
async fn acme(server: &Server, api: Value) {
    let face = &server.face;
    face.call("POST", "/v1/tenants", json!({ "name": "acme", "spec": { "api": api } })).await.is(201);
    face.member("acme", "ann - acme", "owner").await;
    face.member("acme", "otto", "owner").await;
    face.member("default", "otto", "owner").await;
    server.knows(DOMAIN, Some("acme")).await;
}

fn group() -> Value {
    json!({ "spec": { "rule": "anti-affinity" } })
}

async fn a_domain_serves_its_tenant_and_no_other(world: World) {
    let server = Server::new(&world).await;
    acme(&server, json!({ "domain": DOMAIN })).await;
    let (groups, theirs) = (format!("{ACME}/placement-groups"), "/v1/tenants/default/placement-groups");
    // By the server's own domain, and by any other name, all is as it was.
    for host in ["api.example", "api.acme.example.evil.example", "10.0.0.1:8440"] {
        server.get(host, "otto", theirs).await.is(200);
        server.get(host, "ann - acme", &groups).await.is(200);
        server.get(host, "operator", "/v1/tenants").await.is(200);
    }
    for host in [DOMAIN, "API.Acme.Example.:8440"] {
        server.ask(host, "ann - acme", "POST", &groups, group()).await.is(201);
        server.ask(host, "ann - acme", "POST", theirs, group()).await.is_problem(404, "not-found");
        for path in [theirs, "/v1/tenants", "/v1/nodes", "/v1/jobs", "/v1/placement-groups", "/v1/audit"] {
            server.get(host, "ann - acme", path).await.is_problem(404, "not-found");
        }
        assert_eq!(
            server.get(host, "ann - acme", "/v1/whoami").await.is(200).json["tenants"],
            json!(["acme"])
        );
        for who in ["otto", "operator", "bea - beta", "rzt_bogus", "rzo1.bogus"] {
            let refused = server.get(host, who, &groups).await.is_problem(401, "unauthenticated");
            assert!(!refused.json.to_string().contains("beta"), "{:#}", refused.json);
        }
        for (path, who) in [("/healthz", ""), ("/openapi.json", "")] {
            server.get(host, who, path).await.is(200);
        }
    }
    // Of tokens those that are good in this tenant only.
    let token = async |who: &str, spec: Value| {
        let made =
            server.ask("api.example", who, "POST", "/v1/tokens", json!({ "spec": spec })).await.is(201);
        made.json["secrets"]["token"].as_str().unwrap().to_owned()
    };
    for (who, spec, there) in [
        ("otto", json!({}), 401),
        ("otto", json!({ "tenant": "default" }), 401),
        ("otto", json!({ "tenant": "acme" }), 200),
        ("ann - acme", json!({}), 200),
        ("operator", json!({}), 401),
        ("operator", json!({ "tenant": "acme" }), 200),
    ] {
        let secret = token(who, spec.clone()).await;
        assert_eq!(server.get(DOMAIN, &secret, &groups).await.status, there, "{who} {spec}");
        let elsewhere = server.get(DOMAIN, &secret, theirs).await.status;
        assert_eq!(elsewhere, if there == 200 { 404 } else { 401 }, "{who} {spec}");
    }
    // A name of the server itself stays its own, even if a tenant were given it.
    let own = json!({ "spec": { "api": { "domain": "api.example" } } });
    server.face.call("PATCH", ACME, own).await.is(200);
    server.knows(DOMAIN, None).await;
    server.get("api.example", "operator", "/v1/tenants").await.is(200);
    server.face.call("PATCH", ACME, json!({ "spec": { "api": null } })).await.is(200);
    world.store.called(["API.example".to_owned()]);
    let other = json!({ "name": "other", "spec": { "api": { "domain": "api.example" } } });
    let refused = server.face.call("POST", "/v1/tenants", other).await.is_problem(422, "invalid");
    assert_eq!(refused.fields(), ["spec.api.domain"]);
}

// === certificates ===

/// A certificate of its own for a name, and its key.
fn pair(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// The clock of whoever looks at a certificate.
#[derive(Debug)]
struct Looks(SystemTime);

impl TimeProvider for Looks {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap()))
    }
}

/// A GET by a connection that was made for this name, by somebody who believes nobody but this; what it says to be for.
async fn over(
    door: &Door,
    believed: &str,
    made_for: &str,
    version: Version,
    host: &str,
) -> Result<(u16, Value), String> {
    over_at(SystemTime::now(), door, believed, made_for, version, host).await
}

/// The same, at this time.
async fn over_at(
    now: SystemTime,
    door: &Door,
    believed: &str,
    made_for: &str,
    version: Version,
    host: &str,
) -> Result<(u16, Value), String> {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(believed.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(Looks(now)))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols =
        vec![if version == Version::HTTP_2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    let tcp = TcpStream::connect(door.address).await.unwrap();
    let name = ServerName::try_from(made_for.to_owned()).unwrap();
    let tls =
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| error.to_string())?;
    let (io, path) = (TokioIo::new(tls), format!("{ACME}/placement-groups"));
    let request = Request::builder().header("authorization", "Is ann - acme");
    let (response, line) = if version == Version::HTTP_2 {
        let (mut sender, line) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let line = tokio::spawn(line);
        let request = request.uri(format!("https://{host}{path}")).body(Empty::<Bytes>::new()).unwrap();
        (sender.send_request(request).await.unwrap(), line)
    } else {
        let (mut sender, line) = http1::handshake(io).await.unwrap();
        let line = tokio::spawn(line);
        let request = request.uri(path).header("host", host).body(Empty::<Bytes>::new()).unwrap();
        (sender.send_request(request).await.unwrap(), line)
    };
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    line.abort();
    Ok((status, serde_json::from_slice(&bytes).unwrap()))
}

/// As everybody does it: for the name that is meant.
async fn asked(door: &Door, believed: &str, name: &str) -> Result<u16, String> {
    over(door, believed, name, Version::HTTP_2, name).await.map(|(status, _)| status)
}

async fn each_domain_shows_its_own_certificate(world: World) {
    let (server, other) = (Server::new(&world).await, Server::new(&world).await);
    acme(&server, json!({ "domain": DOMAIN })).await;
    other.knows(DOMAIN, Some("acme")).await;
    let (door, beside) = (server.door(&world), other.door(&world));
    // None was given: the cluster's own authority vouches for it, at each of the servers.
    for (server, door) in [(&server, &door), (&other, &beside)] {
        let own = server.authority.trust_pem();
        assert_eq!(asked(door, &own, DOMAIN).await, Ok(200));
        assert_eq!(asked(door, &own, "api.example").await, Ok(200));
        asked(door, &own, "api.beta.example").await.expect_err("that is nobody's name");
    }
    // What is given is shown from then on, at all servers, and another one after it.
    for _ in 0..2 {
        let (certificate, key) = pair(DOMAIN);
        let api = json!({ "spec": { "api": { "certificate": certificate, "key": key } } });
        let reply = server.face.call("PATCH", ACME, api).await.is(200);
        assert!(!reply.json.to_string().contains("PRIVATE KEY"), "{:#}", reply.json);
        for (server, door) in [(&server, &door), (&other, &beside)] {
            until("it to be shown", PATIENCE, async || asked(door, &certificate, DOMAIN).await.ok()).await;
            asked(door, &certificate, "api.example").await.expect_err("the server's own is as it was");
            assert_eq!(asked(door, &server.authority.trust_pem(), "api.example").await, Ok(200));
        }
    }
    // Nobody reads its key anywhere.
    for column in ["resource.spec", "revision.spec", "resource.claims"] {
        let (table, column) = column.split_once('.').unwrap();
        let all = world.ask(&format!("SELECT {column} FROM {table}")).await.concat().concat();
        assert!(!all.contains("PRIVATE KEY"), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_is_made_anew_before_it_ends_on_sqlite() {
    our_own_is_made_anew_before_it_ends(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_is_made_anew_before_it_ends_on_postgres() {
    our_own_is_made_anew_before_it_ends(Engine::Postgres).await;
}

async fn our_own_is_made_anew_before_it_ends(engine: Engine) {
    let time = Time::begin();
    let world = World::with_time(engine, &time, 5).await;
    let server = Server::new(&world).await;
    acme(&server, json!({ "domain": DOMAIN })).await;
    let (door, own) = (server.door(&world), server.authority.trust_pem());
    let ask = async |name: &str| {
        let now = time.now().into();
        over_at(now, &door, &own, name, Version::HTTP_2, name).await.map(|(status, _)| status)
    };
    for day in 0..100 {
        if [0, 1, 29, 31, 60, 62, 99].contains(&day) {
            assert_eq!(ask(DOMAIN).await, Ok(200), "day {day}");
        }
        time.pass(24 * 3600);
    }
    // What this door was opened with is nobody's to renew here: a client does look at the time.
    assert!(ask("api.example").await.unwrap_err().contains("expired"));
}

async fn connection_and_request_say_the_same_name(world: World) {
    let server = Server::new(&world).await;
    acme(&server, json!({ "domain": DOMAIN })).await;
    let beta = json!({ "name": "beta", "spec": { "api": { "domain": "api.beta.example" } } });
    server.face.call("POST", "/v1/tenants", beta).await.is(201);
    server.knows("api.beta.example", Some("beta")).await;
    let door = server.door(&world);
    let own = server.authority.trust_pem();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let ask =
            async |made_for: &str, host: &str| over(&door, &own, made_for, version, host).await.unwrap();
        for name in [DOMAIN, "api.example", "API.acme.example:443"] {
            assert_eq!(ask(name.split(':').next().unwrap(), name).await.0, 200, "{name}");
        }
        for (made_for, host) in [
            (DOMAIN, "api.beta.example"),
            (DOMAIN, "api.example"),
            ("api.beta.example", DOMAIN),
            ("api.example", DOMAIN),
            ("api.example", "api.acme.example.:443"),
            ("127.0.0.1", DOMAIN),
        ] {
            // Whoever asks for an address asks for no name.
            let (status, told) = ask(made_for, host).await;
            assert_eq!((status, &told["type"]), (421, &json!("/problems/misdirected")), "{made_for} {host}");
        }
        // No tenant's: it is as it always was.
        assert_eq!(ask("api.example", "elsewhere.example").await.0, 200);
    }
    // A name is said once.
    let two = [("host", DOMAIN), ("host", "api.example")];
    server.face.raw("GET", "/v1", &two, "").await.is_problem(400, "malformed");
}

// === issuers ===

async fn who_logs_in_there_is_told_of_its_own_issuer(world: World) {
    let folder = tempfile::tempdir().unwrap();
    let passwords = |name: &str| {
        let path = folder.path().join(name);
        let hash = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQxMjM0NTY3OA$";
        std::fs::write(&path, format!("anna:{hash}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let oidc = |name: &str, tenant: Value| {
        let mut one = json!({ "type": "oidc", "name": name, "issuer": format!("https://192.0.2.1/realms/{name}"),
            "audiences": ["rhyzome"], "login_client": "cli" });
        if tenant.is_string() {
            one["tenant"] = tenant;
        }
        one
    };
    let file: AuthFile = serde_json::from_value(json!({ "authenticators": [
        oidc("all", Value::Null), oidc("acme", json!("acme")), oidc("beta", json!("beta")),
        { "type": "htpasswd", "name": "betas", "tenant": "beta", "file": passwords("beta") },
    ] }))
    .unwrap();
    let allow = vec!["192.0.2.0/24".parse().unwrap()];
    let rules = Rules { allow, own: Vec::new() };
    let outbound = Arc::new(Outbound::new(rules, Limits::default(), Arc::new(SystemNames)).unwrap());
    let list = file.resolve().unwrap().make(world.store.env(), &outbound, &Arc::<Sessions>::default());
    let domains = Arc::new(Domains::default());
    let operator = knowing(&world, domains.clone());
    for tenant in ["acme", "beta", "none"] {
        let api = json!({ "domain": format!("api.{tenant}.example") });
        let body = json!({ "name": tenant, "spec": { "api": api } });
        operator.call("POST", "/v1/tenants", body).await.is(201);
    }
    domains.read(&world.store).await.unwrap();
    let face = Face::knowing(&world, Authenticators::new(list.unwrap()).with_domains(domains));
    let at = async |host: &str| {
        let reply = face.raw("GET", "/v1/login", &[("host", host)], "").await.is(200);
        let items = reply.json["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|one| one["issuer"].as_str().unwrap().rsplit_once('/').unwrap().1.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(at("api.example").await, ["all"]);
    assert_eq!(at("api.acme.example").await, ["acme"]);
    assert_eq!(at("api.beta.example").await, ["beta"]);
    assert_eq!(at("api.none.example").await, [""; 0]);
    // Whom another's issuer knows is not even looked at: its file of passwords counts a guess only where it is asked.
    let basic = [("authorization", "Basic YW5uYTp4"), ("host", "api.acme.example")];
    let refused = face.raw("GET", "/v1/whoami", &basic, "").await.is_problem(401, "unauthenticated");
    assert!(refused.json["detail"].as_str().unwrap().contains("on this domain"), "{:#}", refused.json);
    let basic = [("authorization", "Basic YW5uYTp4"), ("host", "api.beta.example")];
    let refused = face.raw("GET", "/v1/whoami", &basic, "").await.is_problem(401, "unauthenticated");
    assert!(!refused.json["detail"].as_str().unwrap().contains("on this domain"), "{:#}", refused.json);
    // Nor does another's issuer end logins there.
    for (host, status) in [("api.acme.example", 404), ("api.beta.example", 400)] {
        face.raw("POST", "/v1/login/beta/ended", &[("host", host)], "logout_token=x").await.is(status);
    }
}

// === its end ===

async fn a_domain_ends_with_its_tenant(world: World) {
    let server = Server::new(&world).await;
    acme(&server, json!({ "domain": DOMAIN })).await;
    let groups = format!("{ACME}/placement-groups");
    // Who is suspended may look, there too.
    server.face.call("POST", &format!("{ACME}/actions/suspend"), json!({})).await.is(200);
    server.get(DOMAIN, "ann - acme", &groups).await.is(200);
    server.ask(DOMAIN, "ann - acme", "POST", &groups, group()).await.is_problem(403, "tenant-suspended");
    server.face.call("POST", &format!("{ACME}/actions/resume"), json!({})).await.is(200);
    server.ask(DOMAIN, "ann - acme", "POST", &groups, group()).await.is(201);
    // No other tenant has it meanwhile, as what its API is called or otherwise.
    for spec in [json!({ "api": { "domain": DOMAIN } }), json!({ "domains": [DOMAIN] })] {
        let body = json!({ "name": "heir", "spec": spec });
        server.face.call("POST", "/v1/tenants", body).await.is_problem(422, "invalid");
    }
    server.face.call("DELETE", &format!("{ACME}?cascade=true"), Value::Null).await.is(202);
    until("the tenant to be gone", PATIENCE, async || {
        rhyzome_api::jobs::look(&world.store).await.unwrap();
        (server.face.get(ACME).await.status == 404).then_some(())
    })
    .await;
    server.knows(DOMAIN, None).await;
    let heir = json!({ "name": "heir", "spec": { "api": { "domain": DOMAIN } } });
    server.face.call("POST", "/v1/tenants", heir).await.is(201);
    server.knows(DOMAIN, Some("heir")).await;
    server.get(DOMAIN, "ann - acme", &groups).await.is_problem(401, "unauthenticated");
    // Without it, it is a name as any other.
    server.face.call("PATCH", "/v1/tenants/heir", json!({ "spec": { "api": null } })).await.is(200);
    server.knows(DOMAIN, None).await;
    server.get(DOMAIN, "operator", "/v1/tenants").await.is(200);
}

async fn what_is_no_pair_is_refused(world: World) {
    let server = Server::new(&world).await;
    let ((certificate, key), (another, _)) = (pair(DOMAIN), pair("api.beta.example"));
    let body = |domain: &str, certificate: &str, key: &str| json!({ "name": "acme", "spec": { "api": { "domain": domain, "certificate": certificate, "key": key } } });
    for (wrong, why) in [
        (body(DOMAIN, &another, &key), "spec.api.certificate"),
        (body("api.beta.example", &certificate, &key), "spec.api.certificate"),
        (body(DOMAIN, &certificate, "no key"), "spec.api.certificate"),
        (body(DOMAIN, "none", &key), "spec.api.certificate"),
    ] {
        let refused = server.face.call("POST", "/v1/tenants", wrong).await.is_problem(422, "invalid");
        assert_eq!(refused.fields(), [why]);
        assert!(!refused.json.to_string().contains("PRIVATE"), "{:#}", refused.json);
    }
    server.face.call("POST", "/v1/tenants", body(DOMAIN, &certificate, &key)).await.is(201);
    // A certificate without its key cannot be looked at, and a field that means nothing is told.
    let alone = json!({ "spec": { "api": { "certificate": pair(DOMAIN).0 } } });
    let refused = server.face.call("PATCH", ACME, alone).await.is_problem(422, "invalid");
    assert_eq!(refused.fields(), ["spec.api.key"]);
    server.face.call("PATCH", ACME, json!({ "spec": { "description": "still here" } })).await.is(200);
}
