//! People of a real slapd: who gets in and who does not, by each way to it; their groups and what they may do; and what
//! happens when it is away.

mod slapd;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rhyzome_api::auth::{AuthFile, Authenticators, RequestDetails, Sessions};
use rhyzome_api::environment::system_env;
use rhyzome_api::kernel::Caller;
use rhyzome_api::outbound::{Limits, Outbound, Rules, SystemNames};
use serde_json::{Value, json};
use xtask::http;

use self::slapd::{GROUPS, PEOPLE, READER, Slapd};
use crate::house::{self, Answer, House, until};

/// An authenticator of the type `ldap`, with more keys or other ones; `null` takes one away.
fn entry(slapd: &Slapd, more: Value) -> Value {
    let mut entry = json!({
        "type": "ldap", "name": "corp", "url": format!("ldap://{}", slapd.plain), "start_tls": true,
        "ca": slapd.file("ca.pem"), "bind_dn": READER.0, "bind_password_file": slapd.file("password"),
        "base": PEOPLE, "group_base": GROUPS, "timeout_seconds": 10,
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    entry
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))
}

// === each way to it ===

/// Authenticators as a server has them, without the server.
fn made(entry: Value) -> Authenticators {
    let file: AuthFile = serde_json::from_value(json!({ "authenticators": [entry] })).unwrap();
    let rules =
        Rules { allow: vec!["127.0.0.1/32".parse().unwrap(), "::1/128".parse().unwrap()], own: Vec::new() };
    let outbound = Outbound::new(rules, Limits::default(), Arc::new(SystemNames)).unwrap();
    let list = file.resolve().unwrap().make(&system_env(), &Arc::new(outbound), &Arc::<Sessions>::default());
    Authenticators::new(list.unwrap())
}

/// Who that is; `Err(true)`: it cannot be told now. Each comes from an address of their own: nobody is stopped for the
/// guesses of others.
async fn ask(all: &Authenticators, name: &str, password: &str) -> Result<Caller, bool> {
    let request = RequestDetails { source: format!("{name} {password}"), ..RequestDetails::default() };
    all.authenticate(Some(&basic(name, password)), &request).await.map_err(|refusal| refusal.later)
}

#[test]
fn everybody_of_a_real_slapd_by_every_way_to_it() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut slapd = Slapd::start(elsewhere.local_addr().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        ways(&slapd).await;
        names_are_names(&slapd).await;
        whom_it_does_not_believe(&slapd).await;
    });
    // Nobody has gone where the referral leads.
    elsewhere.set_nonblocking(true).unwrap();
    assert!(elsewhere.accept().is_err());
    slapd.stop();
}

async fn ways(slapd: &Slapd) {
    let plain = format!("ldap://{}", slapd.plain);
    let by_name = json!({ "user_dn": format!("uid={{name}},{PEOPLE}"), "base": null });
    let alone = json!({ "bind_dn": null, "bind_password_file": null, "group_base": null });
    let both = |one: &Value, other: &Value| {
        let mut all = one.clone();
        all.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        all
    };
    for (more, groups) in [
        (json!({}), true),
        (json!({ "url": format!("ldaps://{}", slapd.encrypted), "start_tls": null }), true),
        (json!({ "url": plain, "start_tls": null, "ca": null, "plain": true }), true),
        (by_name.clone(), true),
        (both(&by_name, &alone), false),
    ] {
        let all = made(entry(slapd, more.clone()));
        let anna = ask(&all, "anna", "anna-of-a-test").await.unwrap_or_else(|_| panic!("{more:#}"));
        assert_eq!((anna.name.as_str(), anna.credential.as_str()), ("anna", "corp/password"));
        assert_eq!(anna.groups, if groups { vec!["night-shift"] } else { Vec::new() }, "{more:#}");
        // As it stands in the directory, whatever was typed: rights know one anna only.
        let again = ask(&all, "ANNA", "anna-of-a-test").await.unwrap();
        assert_eq!((again.name, &again.subject), (anna.name, &anna.subject));
        assert_eq!(anna.subject.len(), 36, "an entryUUID, not {}", anna.subject);
        for (name, password) in [
            ("anna", "bert-of-a-test"),
            ("anna", ""),
            ("nobody", "x"),
            ("nobody", ""),
            ("dora", "x"),
            ("dora", ""),
        ] {
            assert_eq!(ask(&all, name, password).await, Err(false), "{name} {password} {more:#}");
        }
        assert_eq!(ask(&all, "twin", "twin-of-a-test").await, Err(false), "{more:#}");
    }
}

async fn names_are_names(slapd: &Slapd) {
    let by_name = json!({ "user_dn": format!("uid={{name}},{PEOPLE}"), "base": null });
    for more in [json!({}), by_name] {
        let all = made(entry(slapd, more));
        for name in [
            "*",
            "ann*",
            "anna)(uid=*",
            "*)(objectClass=*",
            "anna)(|(uid=bert",
            "anna\\",
            "\\2a",
            "{dn}",
            "{name}",
            "anna,ou=people",
            "bert+uid=anna",
            "anna,ou=people,dc=example,dc=com#",
            " anna\\20",
        ] {
            assert_eq!(ask(&all, name, "anna-of-a-test").await, Err(false), "{name}");
        }
        assert!(ask(&all, "anna", "anna-of-a-test").await.is_ok());
    }
    // Who really is called so gets in, and their groups are found by a name of the same kind.
    let carla = ask(&made(entry(slapd, json!({}))), "c(*)", "carla-of-a-test").await.unwrap();
    assert_eq!((carla.name.as_str(), &carla.groups[..]), ("c(*)", &["night-shift".to_owned()][..]));
}

async fn whom_it_does_not_believe(slapd: &Slapd) {
    let ldaps = format!("ldaps://{}", slapd.encrypted);
    let named = format!("ldaps://localhost:{}", slapd.encrypted.port());
    for more in [
        json!({ "ca": slapd.file("wrong-ca.pem") }),
        json!({ "ca": slapd.file("wrong-ca.pem"), "url": ldaps, "start_tls": null }),
        // The right authority, and a name that is not in the certificate.
        json!({ "url": named, "start_tls": null }),
        json!({ "bind_password_file": slapd.file("wrong-password") }),
        json!({ "base": "ou=nowhere,dc=example,dc=com" }),
        json!({ "group_base": "ou=nowhere,dc=example,dc=com" }),
        // Those who may not look find nobody: they do not know that nobody is there.
        json!({ "bind_dn": null, "bind_password_file": null }),
    ] {
        let all = made(entry(slapd, more.clone()));
        assert_eq!(ask(&all, "anna", "anna-of-a-test").await, Err(true), "{more:#}");
    }
    // An entry that does not say who it is for good is nobody's.
    let all = made(entry(slapd, json!({ "subject_attribute": "employeeNumber" })));
    assert_eq!(ask(&all, "anna", "anna-of-a-test").await, Err(false));
}

// === a server ===

struct Story {
    house: House,
    slapd: Slapd,
}

impl Story {
    fn ask(&self, name: &str, password: &str, path: &str) -> Answer {
        let headers = [format!("Authorization: {}", basic(name, password))];
        let reply = http::request(self.house.world.http, "GET", path, &headers, "", Duration::from_secs(60));
        Answer::of(reply.unwrap())
    }
}

const INSTANCES: &str = "/v1/tenants/default/instances";

#[test]
fn people_of_a_directory_and_what_they_may_do() {
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let slapd = Slapd::start(nowhere.local_addr().unwrap());
    let more = json!({ "groups": { "cloud-admins": "staff" }, "operators": { "groups": ["staff"] } });
    let entry = entry(&slapd, more);
    let house = House::with(house::shared(), |options| {
        options.nodes.clear();
        options.config = json!({ "auth": { "allow": ["127.0.0.1/32"], "authenticators": [entry] } });
    });
    let mut story = Story { house, slapd };
    groups_become_rights(&story);
    it_goes_and_comes_back(&mut story);
    story.slapd.stop();
}

fn groups_become_rights(story: &Story) {
    let me = story.ask("anna", "anna-of-a-test", "/v1/whoami").is(200).json;
    assert_eq!((&me["name"], &me["operator"]), (&json!("anna"), &json!(false)), "{me:#}");
    story.ask("anna", "anna-of-a-test", INSTANCES).problem(404, "not-found");
    let spec =
        json!({ "subjects": { "n": { "group": "night-shift", "authenticator": "corp" } }, "role": "viewer" });
    story.house.make("/v1/tenants/default/bindings", json!({ "name": "night", "spec": spec }));
    story.ask("anna", "anna-of-a-test", INSTANCES).is(200);
    story.ask("c(*)", "carla-of-a-test", INSTANCES).is(200);
    let me = story.ask("bert", "bert-of-a-test", "/v1/whoami").is(200).json;
    assert_eq!(me["operator"], true, "{me:#}");
    story.ask("anna", "other", INSTANCES).problem(401, "unauthenticated");
    story.ask("anna", "", INSTANCES).problem(401, "unauthenticated");
}

fn it_goes_and_comes_back(story: &mut Story) {
    story.slapd.stop();
    // What was right a moment ago is; nobody else gets in, and nobody is told that they are wrong.
    story.ask("anna", "anna-of-a-test", INSTANCES).is(200);
    let mut answers: BTreeMap<u16, u32> = BTreeMap::new();
    for _ in 0..10 {
        *answers.entry(story.ask("anna", "other", INSTANCES).status).or_default() += 1;
    }
    assert_eq!(answers, BTreeMap::from([(503, 10)]));
    story.slapd.again();
    // It is left in peace for a while, however it answers by now.
    until("the directory to be asked again", 60, || {
        (story.ask("anna", "other", INSTANCES).one_of(&[401, 503]).status == 401).then_some(())
    });
    story.ask("anna", "anna-of-a-test", INSTANCES).is(200);
}
