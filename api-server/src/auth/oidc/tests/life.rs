//! Whom tokens stand for, and what happens when keys change, the issuer is away or a login ends.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

async fn caller(world: &World, token: &str) -> Caller {
    match world.show(token).await {
        Verdict::Caller(caller) => caller,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_as_keycloak_makes_it() {
    let world = World::keycloak(json!({})).await;
    let anna = caller(&world, &world.token(json!({}))).await;
    assert_eq!((anna.name.as_str(), anna.subject.as_str()), ("anna", "u-1"));
    assert_eq!(anna.groups, ["/ops", "admin"]);
    assert_eq!(anna.only_in.as_deref(), Some("acme"));
    assert_eq!(anna.session.as_deref(), Some("s-1"));
    assert_eq!(anna.credential, "acme/token");
    assert!(!anna.operator);
    for other in [None, Some("Basic eDp5"), Some("Bearer rzo1.x"), Some("Bearer opaque-anna")] {
        assert_eq!(world.oidc.authenticate(other, &RequestDetails::default()).await, Verdict::NotMine);
    }
}

#[tokio::test]
async fn a_token_as_others_make_it() {
    // RFC 9068: the header says that it is an access token. Names, groups and algorithm are others, too.
    let settings =
        json!({ "name_claim": "email", "group_claims": ["https://id.example/teams", "ext.groups"] });
    let world = World::new(Pair::new("2026-11", Algorithm::ES384), settings).await;
    let claims = world.claims(json!({
        "typ": null, "aud": "rhyzome", "email": "anna@example.com", "https://id.example/teams": ["ops"],
        "ext": { "groups": "dev" }, "client_id": "shell", "azp": null,
    }));
    for typ in ["at+jwt", "application/at+jwt", "AT+JWT"] {
        let anna = caller(&world, &world.mock.pair.sign(Some(typ), &claims)).await;
        assert_eq!(anna.name, "anna@example.com");
        assert_eq!(anna.groups, ["dev", "ops"]);
    }
    // One that says nothing counts only where that is configured, and an identity token never does.
    refusal(world.show(&world.mock.pair.sign(None, &claims)).await);
    let loose = World::new(Pair::new("2026-11", Algorithm::ES384), json!({ "untyped_tokens": true })).await;
    let plain = |changes: Value| loose.mock.pair.sign(None, &loose.claims(changes));
    caller(&loose, &plain(json!({ "typ": null }))).await;
    for claim in ["nonce", "at_hash"] {
        refusal(loose.show(&plain(json!({ "typ": null, (claim): "x" }))).await);
    }
}

#[tokio::test]
async fn keys_change_and_invented_ones_flood_nobody() {
    let world = World::keycloak(json!({})).await;
    caller(&world, &world.token(json!({}))).await;
    assert_eq!(world.mock.served.count("GET /keys"), 1);
    world.watch.pass(11);
    let next = Pair::new("k2", Algorithm::ES256);
    world.mock.keys.lock().unwrap().push(next.jwk.clone());
    caller(&world, &next.sign(None, &world.claims(json!({})))).await;
    assert_eq!(world.mock.served.count("GET /keys"), 2);
    for number in 0..200 {
        let invented = Pair { kid: format!("x{number}"), ..next.clone() };
        let why = refusal(world.show(&invented.sign(None, &world.claims(json!({})))).await);
        assert!(why.contains("a key that its issuer does not have"), "{why}");
    }
    assert_eq!(world.mock.served.count("GET /keys"), 2, "asked a moment ago: not again");
    world.watch.pass(11);
    for number in 0..200 {
        let invented = Pair { kid: format!("y{number}"), ..next.clone() };
        refusal(world.show(&invented.sign(None, &world.claims(json!({})))).await);
    }
    assert_eq!(world.mock.served.count("GET /keys"), 3);
    // A key that was taken back signs nothing any more, once keys are asked for anew.
    world.mock.keys.lock().unwrap().remove(0);
    world.watch.pass(610);
    refusal(world.show(&world.token(json!({ "exp": NOW + 3000 }))).await);
    caller(&world, &next.sign(None, &world.claims(json!({ "exp": NOW + 3000 })))).await;
}

#[tokio::test]
async fn an_issuer_that_is_away_brings_no_new_trust() {
    let world = World::keycloak(json!({})).await;
    *world.mock.up.lock().unwrap() = false;
    let long = world.token(json!({ "exp": NOW + 7200 }));
    assert!(matches!(world.show(&long).await, Verdict::Unavailable(_)));
    *world.mock.up.lock().unwrap() = true;
    world.watch.pass(11);
    caller(&world, &long).await;
    *world.mock.up.lock().unwrap() = false;
    // An hour later: known keys still tell what was signed with them, another key is nobody's.
    world.watch.pass(3600);
    caller(&world, &long).await;
    refusal(
        world
            .show(&Pair::new("k2", Algorithm::ES256).sign(None, &world.claims(json!({ "exp": NOW + 7200 }))))
            .await,
    );
    world.watch.pass(3631);
    assert!(refusal(world.show(&long).await).contains("has expired"));
}

#[tokio::test]
async fn an_issuer_that_calls_itself_otherwise_is_not_believed() {
    let mock = Mock::new(Pair::new("k1", Algorithm::ES256)).await;
    let watch = Watch::default();
    let settings = json!({ "issuer": format!("{}/", mock.url()), "audiences": ["rhyzome"], "http": true });
    let settings = serde_json::from_value(settings).unwrap();
    let oidc = Oidc::new(Terms::default(), settings, outbound(), Arc::default(), &env(&watch)).unwrap();
    let claims = json!({ "iss": format!("{}/", mock.url()), "aud": "rhyzome", "sub": "u", "typ": "Bearer", "exp": NOW + 60 });
    let header = format!("Bearer {}", mock.pair.sign(None, &claims));
    let verdict = oidc.authenticate(Some(&header), &RequestDetails::default()).await;
    assert!(matches!(verdict, Verdict::Unavailable(_)), "{verdict:?}");
}

#[tokio::test]
async fn opaque_tokens_are_asked_about() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "hush\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let settings = json!({ "introspection": { "client_id": "api", "client_secret_file": file } });
    let world = World::keycloak(settings).await;
    let anna = caller(&world, "opaque-anna").await;
    assert_eq!((anna.name.as_str(), anna.subject.as_str()), ("anna", "u-1"));
    caller(&world, "opaque-anna").await;
    assert_eq!(world.mock.served.count("POST /introspect"), 1, "remembered for a while");
    assert!(refusal(world.show("opaque-other").await).contains("for somebody else"));
    assert!(matches!(world.show("invented").await, Verdict::Wrong(_)));
    *world.mock.up.lock().unwrap() = false;
    assert!(matches!(world.show("opaque-later").await, Verdict::Unavailable(_)));
    world.watch.pass(61);
    assert!(matches!(world.show("opaque-anna").await, Verdict::Unavailable(_)));
}

fn logout(world: &World, changes: Value) -> String {
    let mut claims = json!({
        "iss": world.mock.url(), "aud": "shell", "iat": NOW, "exp": NOW + 120, "jti": "j-1", "sid": "s-1", "sub": "u-1",
        "typ": "Logout", "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    world.mock.pair.sign(Some("logout+jwt"), &claims)
}

#[tokio::test]
async fn only_the_issuer_ends_a_login() {
    let world = World::keycloak(json!({ "login_client": "shell" })).await;
    let ended = world.oidc.ended(&logout(&world, json!({}))).await.unwrap();
    assert_eq!(
        (ended.session.as_str(), ended.subject.as_str(), ended.authenticator.as_str()),
        ("s-1", "", "acme")
    );
    let all = world.oidc.ended(&logout(&world, json!({ "sid": null }))).await.unwrap();
    assert_eq!((all.session.as_str(), all.subject.as_str()), ("", "u-1"));
    for (changes, wanted) in [
        (json!({ "aud": "shop" }), "for somebody else"),
        (json!({ "events": {} }), "another kind of token"),
        (json!({ "events": null }), "another kind of token"),
        (json!({ "nonce": "x" }), "another kind of token"),
        (json!({ "jti": null }), "no `jti`"),
        (json!({ "iat": null }), "does not say when"),
        (json!({ "iat": NOW - 301, "exp": null }), "too old"),
        (json!({ "iat": NOW + 60 }), "too old, or of the future"),
        (json!({ "exp": NOW - 31 }), "too old"),
        (json!({ "sid": null, "sub": null }), "neither which session nor whose"),
        (json!({ "iss": "https://evil.example" }), "issued by somebody else"),
        (json!({ "sid": "s-1\u{0}" }), "`sid` of `logout_token`"),
        (json!({ "sid": "s-1\n2026 INFO" }), "`sid` of `logout_token`"),
        (json!({ "sid": null, "sub": "u-1\u{1b}[2J" }), "`sub` of `logout_token`"),
        (json!({ "sub": "u-1\u{0}" }), "`sub` of `logout_token`"),
        (json!({ "sid": "s".repeat(5000) }), "`sid` of `logout_token`"),
    ] {
        let why = world.oidc.ended(&logout(&world, changes.clone())).await.unwrap_err();
        assert!(why.contains(wanted), "{changes}: {why}");
    }
    let evil = Pair::new("k1", Algorithm::ES256);
    let claims = json!({ "iss": world.mock.url(), "aud": "shell", "sid": "s-1", "iat": NOW, "jti": "j" });
    let why = world.oidc.ended(&evil.sign(Some("logout+jwt"), &claims)).await.unwrap_err();
    assert!(why.contains("not signed by its issuer"), "{why}");
    // An access token of somebody who is logged in ends nothing.
    assert!(world.oidc.ended(&world.token(json!({ "aud": "shell" }))).await.is_err());
    assert!(world.oidc.ended("x").await.is_err());
}

#[tokio::test]
async fn what_has_ended_counts_no_more_though_it_is_remembered() {
    let world = World::keycloak(json!({ "login_client": "shell" })).await;
    let (mine, other) = (world.token(json!({})), world.token(json!({ "sid": "s-2" })));
    caller(&world, &mine).await;
    caller(&world, &other).await;
    world.sessions.tell(world.oidc.ended(&logout(&world, json!({}))).await.unwrap());
    assert!(refusal(world.show(&mine).await).contains("this login has ended"));
    caller(&world, &other).await;
    world.sessions.tell(world.oidc.ended(&logout(&world, json!({ "sid": null }))).await.unwrap());
    refusal(world.show(&other).await);
    // Whoever logs in again is somebody again.
    caller(&world, &world.token(json!({ "sid": "s-3", "iat": NOW + 1 }))).await;
}
