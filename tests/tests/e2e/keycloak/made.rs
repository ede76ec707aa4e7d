//! Realms that Rhyzome makes for tenants at a real Keycloak, by a service account that may make realms and nothing more.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use super::realms::{ANNA, Realms};
use super::{Story, login, text};
use crate::house::{self, until};
use crate::people::part;

/// Who makes realms, and what they show.
const MAKER: (&str, &str) = ("rhyzome-maker", "maker-of-a-test");

/// The configuration of a server that makes realms there; its secret is kept in this folder.
pub fn config(realms: &Realms, folder: &Path, api: &str) -> Value {
    let file = folder.join("keycloak.secret");
    std::fs::write(&file, MAKER.1).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    house::own(&file);
    realms.maker(MAKER);
    json!({
        "url": format!("http://{}", realms.keycloak.address), "http": true, "api_url": api,
        "client_id": MAKER.0, "client_secret_file": file,
    })
}

/// The job of an answer, when it has failed.
fn failed(story: &Story, answer: &Value) -> Value {
    let job = text(answer, "job").to_owned();
    until("the job to fail", 60, || {
        let job = story.house.get(&format!("/v1/jobs/{job}"));
        (job["state"] == "failed").then_some(job)
    })
}

pub fn realms_are_made_for_tenants(story: &Story) {
    let house = &story.house;
    let beta = house.make("/v1/tenants", json!({ "name": "beta", "spec": { "make_realm": true } }));
    assert_eq!(beta["status"]["realm"]["made"], true, "{beta:#}");
    story.realms.person("beta");
    // By a code with PKCE, which this realm's client demands.
    let tokens = story.anna("beta");
    let token = text(&tokens, "access_token");
    let me = until("the realm to count", 10, || {
        let answer = story.ask(token, "/v1/whoami").one_of(&[200, 401]);
        (answer.status == 200).then_some(answer.json)
    });
    assert_eq!((&me["name"], &me["operator"]), (&json!(ANNA.0), &json!(false)), "{me:#}");
    story.ask(token, "/v1/nodes").problem(404, "not-found");
    story.ask(text(&tokens, "id_token"), "/v1/whoami").problem(401, "unauthenticated");
    // Its groups are known by their paths, its roles by their names.
    let networks = "/v1/tenants/beta/networks";
    story.ask(token, networks).problem(404, "not-found");
    let subjects = json!({ "dev": { "group": "/dev", "authenticator": "realm-beta" } });
    let spec = json!({ "subjects": subjects, "role": "viewer" });
    house.call("POST", "/v1/tenants/beta/bindings", json!({ "spec": spec })).is(201);
    story.ask(token, networks).is(200);
    // With a code of a device, by the command line, in another place.
    let shell = login::somebody_logs_in(story, &story.realms.issuer("beta"), "beta");
    let before = shell.kept("beta");
    // One login ends: where another goes on, there is a new token without a word.
    story.realms.end("beta", text(&part(token, 1), "sid"));
    assert!(has_ended(story, token) && has_ended(story, text(&before, "access_token")));
    assert_eq!(shell.whoami(&["--profile", "beta"])["name"], json!(ANNA.0));
    // An administrator ends all that there are, and Keycloak tells where it was told to when the realm was made.
    let tokens = story.anna("beta");
    let (token, kept) = (text(&tokens, "access_token"), shell.kept("beta"));
    assert_ne!(kept["access_token"], before["access_token"]);
    story.realms.log_out("beta", ANNA.0);
    assert!(has_ended(story, token) && has_ended(story, text(&kept, "access_token")));
    let refused = shell.refused(&["whoami", "--profile", "beta"]);
    assert!(refused.contains("the login `beta` has ended"), "{refused}");
}

/// Whether a token counts no more, as soon as that is known.
fn has_ended(story: &Story, token: &str) -> bool {
    let refused = until("the login to end", 30, || {
        let answer = story.ask(token, "/v1/whoami").one_of(&[200, 401]);
        (answer.status == 401).then_some(answer.json)
    });
    text(&refused, "detail").contains("this login has ended")
}

pub fn what_is_not_ours_stays(story: &Story) {
    let house = &story.house;
    let wanted = |realm: &str| json!({ "name": "gamma", "spec": { "make_realm": true, "realm": realm } });
    let take_away = |more: &str| {
        let answer = house.call("DELETE", &format!("/v1/tenants/gamma{more}"), Value::Null).is(202);
        house.done(&answer.json);
    };
    // One that somebody else has made may not even be looked at; one that we made for another tenant may.
    for realm in ["cloud", "master"] {
        let made = house.call("POST", "/v1/tenants", wanted(realm)).is(202).json;
        let job = failed(story, &made);
        assert!(text(&job, "problem").contains("was not made for this tenant"), "{job:#}");
        house.call("DELETE", "/v1/tenants/gamma?realm=delete", Value::Null).problem(409, "wrong-state");
        take_away("");
    }
    house.make("/v1/tenants", wanted("gamma"));
    assert!(story.realms.is_there("gamma"));
    take_away("");
    assert!(story.realms.is_there("gamma"), "nobody asked for its end");
    let made = house.call("POST", "/v1/tenants", wanted("gamma")).is(202).json;
    failed(story, &made);
    take_away("");
    // It goes when that was asked for, and can be made anew.
    for _ in 0..2 {
        house.make("/v1/tenants", wanted("gamma2"));
        assert!(story.realms.is_there("gamma2"));
        take_away("?realm=delete");
        assert!(!story.realms.is_there("gamma2"));
    }
    assert!(story.realms.is_there("cloud") && story.realms.is_there("gamma"));
}
