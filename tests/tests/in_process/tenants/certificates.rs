//! The certificate that was given for a tenant's domain: whoever brought it is told before it ends.

use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{CertificateParams, KeyPair};
use rhyzome_api::kernel::Timestamp;
use rhyzome_api::metrics::{Metrics, Traffic, Watched, look};
use rhyzome_pki::Authority;
use rhyzome_tests::exposition::parse;
use rhyzome_tests::face::Face;
use rhyzome_tests::given::Time;
use rhyzome_tests::people::face;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};

const ACME: &str = "/v1/tenants/acme";
const DOMAIN: &str = "api.acme.example";
const DAY: i64 = 24 * 3600;

struct House {
    world: World,
    time: Time,
    face: Face,
}

impl House {
    async fn new(engine: Engine) -> House {
        let time = Time::begin();
        let world = World::with_time(engine, &time, 11).await;
        let face = face(&world);
        super::acme(&face).await;
        House { world, time, face }
    }

    /// One that ends in so many days, and its key.
    fn pair(&self, days: i64) -> (Value, Timestamp) {
        // Certificates count in seconds.
        let until = Timestamp(self.time.now().plus_seconds(days * DAY).0 / 1_000_000 * 1_000_000);
        let mut params = CertificateParams::new(vec![DOMAIN.to_owned()]).unwrap();
        params.not_after = SystemTime::from(until).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        (json!({ "domain": DOMAIN, "certificate": certificate, "key": key.serialize_pem() }), until)
    }

    async fn give(&self, days: i64) -> Timestamp {
        let (api, until) = self.pair(days);
        self.face.call("PATCH", ACME, json!({ "spec": { "api": api } })).await.is(200);
        until
    }

    /// What the tenant's status says.
    async fn said(&self) -> Value {
        self.face.get(ACME).await.is(200).json["status"]["certificate"].clone()
    }

    /// What was told until now, after whoever has to tell has looked.
    async fn told(&self) -> Vec<String> {
        while self.world.store.tell_of_certificates().await.unwrap() > 0 {}
        let sql = "SELECT verb FROM event WHERE verb LIKE 'certificate-%' ORDER BY number";
        self.world.ask(sql).await.concat()
    }

    /// The measure that everybody watches.
    async fn measured(&self) -> Option<f64> {
        let authority =
            Authority::open_or_create(&self.world.folder().join("pki"), SystemTime::now()).unwrap();
        let watched = Watched {
            store: self.world.store.clone(),
            authority: Arc::new(authority),
            traffic: Box::new(Traffic::default),
            http_ends: Box::new(|| None),
        };
        let metrics = Metrics::new();
        look(&metrics, &watched).await.unwrap();
        let series = "rhyzome_certificate_expiry_timestamp_seconds{certificate=\"tenants\"}";
        parse(&metrics.text()).get(series).copied()
    }

    async fn leases(&self) -> Vec<String> {
        let sql = "SELECT scope FROM lease WHERE scope LIKE 'certificate-%' ORDER BY scope";
        self.world.ask(sql).await.concat()
    }
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test] async fn $name() { super::$name(super::Engine::Sqlite).await; })* }
        mod postgres { $(#[tokio::test] async fn $name() { super::$name(super::Engine::Postgres).await; })* }
    };
}

on_both!(
    its_end_is_told_three_times,
    another_one_begins_anew,
    what_is_over_is_refused_and_what_goes_is_forgotten
);

const SOON: &str = "certificate-ends-soon";

async fn its_end_is_told_three_times(engine: Engine) {
    let house = House::new(engine).await;
    assert_eq!((house.said().await, house.measured().await), (Value::Null, None));
    let until = house.give(30).await;
    let state =
        |soon: bool, over: bool| json!({ "expires_at": until, "expires_soon": soon, "expired": over });
    assert_eq!(house.measured().await, Some(until.0 as f64 / 1e6));
    let mut expected: Vec<&str> = Vec::new();
    // How many days are left, what the status says, and what is told that was not told before.
    for (left, soon, over, news) in [
        (30, false, false, None),
        (15, false, false, None),
        (14, true, false, Some(SOON)),
        (3, true, false, None),
        (2, true, false, Some(SOON)),
        (1, true, false, None),
        (0, true, true, Some("certificate-ended")),
        (-40, true, true, None),
    ] {
        house.time.pass((until.0 - house.time.now().0) / 1_000_000 - left * DAY);
        expected.extend(news);
        let before = house.face.get(ACME).await.header("etag").to_owned();
        assert_eq!(house.told().await, expected, "{left} days left");
        let after = house.face.get(ACME).await.header("etag").to_owned();
        assert_eq!(after != before, news.is_some(), "who watches it sees it: {before}, {after}");
        // Any other write tells nothing again.
        let text = json!({ "spec": { "description": format!("{left} days left") } });
        house.face.call("PATCH", ACME, text).await.is(200);
        assert_eq!(house.told().await, expected, "{left} days left");
        assert_eq!(house.said().await, state(soon, over), "{left} days left");
    }
    assert_eq!(house.measured().await, Some(until.0 as f64 / 1e6), "it stands there until there is another");
    // The tenant's own people read it.
    let lease = house.world.store.lead_log("server", true).await.unwrap().unwrap();
    while house.world.store.append_log(&lease).await.unwrap() != Some(0) {}
    let audit = house.face.seen_by("otto", &format!("{ACME}/audit?kind=tenant")).await;
    let text = audit.is(200).json.to_string();
    assert_eq!(text.matches(SOON).count(), 2, "{text}");
    assert!(text.contains(DOMAIN) && text.contains("bring another one: spec.api.certificate"), "{text}");
    let beside = house.face.seen_by("carla", "/v1/tenants/default/audit?kind=tenant").await;
    assert!(!beside.is(200).json.to_string().contains(DOMAIN));
}

async fn another_one_begins_anew(engine: Engine) {
    let house = House::new(engine).await;
    house.give(10).await;
    assert_eq!(house.told().await, [SOON], "at once: it is late already");
    assert_eq!(house.said().await["expires_soon"], true);
    let until = house.give(90).await;
    let fresh = json!({ "expires_at": until, "expires_soon": false, "expired": false });
    assert_eq!((house.said().await, house.told().await.len()), (fresh, 1));
    assert_eq!(house.leases().await, ["certificate-ends", "certificate-tell"]);
    assert_eq!(house.measured().await, Some(until.0 as f64 / 1e6));
    // One that has almost ended is told of once, not twice.
    house.give(1).await;
    assert_eq!(house.told().await, [SOON, SOON]);
    // Two servers look at the same time.
    house.time.pass(2 * DAY);
    let other = house.world.store.clone();
    let (one, two) = tokio::join!(house.world.store.tell_of_certificates(), other.tell_of_certificates());
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(house.told().await, [SOON, SOON, "certificate-ended"]);
    assert_eq!(house.leases().await, ["certificate-ends"]);
}

async fn what_is_over_is_refused_and_what_goes_is_forgotten(engine: Engine) {
    let house = House::new(engine).await;
    let (over, _) = house.pair(-1);
    let refused = house.face.call("PATCH", ACME, json!({ "spec": { "api": over } })).await;
    assert_eq!(refused.is_problem(422, "invalid").fields(), ["spec.api.certificate"]);
    house.give(30).await;
    // Without it our own authority vouches, and looks after that itself.
    let own = json!({ "spec": { "api": { "certificate": null, "key": null } } });
    house.face.call("PATCH", ACME, own).await.is(200);
    assert_eq!((house.said().await, house.leases().await), (Value::Null, Vec::new()));
    house.give(30).await;
    house.face.call("DELETE", &format!("{ACME}?cascade=true"), Value::Null).await.is(202);
    for _ in 0..100 {
        rhyzome_api::jobs::look(&house.world.store).await.unwrap();
        if house.face.get(ACME).await.status == 404 {
            break;
        }
        house.time.pass(10);
    }
    house.face.get(ACME).await.is(404);
    assert_eq!(house.leases().await, [""; 0]);
    house.time.pass(60 * DAY);
    assert_eq!(house.told().await, [""; 0]);
}
