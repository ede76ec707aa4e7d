//! Tokens that somebody made who should not have, or that are meant for something else.

use proptest::prelude::*;
use ring::hmac;

use super::*;

fn encoded(value: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
}

fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// The token with another header, signed by the issuer's key all the same.
fn with_header(world: &World, change: impl Fn(&mut Value)) -> String {
    let token = world.token(json!({}));
    let mut header = part(&token, 0);
    change(&mut header);
    let message = format!("{}.{}", encoded(&header), encoded(&world.claims(json!({}))));
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &world.mock.pair.secret, world.mock.pair.algorithm);
    format!("{message}.{}", signature.unwrap())
}

#[tokio::test]
async fn what_a_token_must_say() {
    let world = World::keycloak(json!({ "clients": ["shell"] })).await;
    assert!(matches!(world.show(&world.token(json!({}))).await, Verdict::Caller(_)));
    for (changes, wanted) in [
        (json!({ "aud": "shop" }), "is for somebody else"),
        (json!({ "aud": null }), "is for somebody else"),
        (json!({ "aud": { "rhyzome": 1 } }), "is for somebody else"),
        (json!({ "azp": "shop" }), "a client that is not known"),
        (json!({ "azp": null }), "a client that is not known"),
        (json!({ "typ": "ID" }), "no access token"),
        (json!({ "typ": "Refresh" }), "no access token"),
        (json!({ "typ": "Logout" }), "no access token"),
        (json!({ "typ": null }), "no access token"),
        (json!({ "exp": NOW - 31 }), "has expired"),
        (json!({ "exp": null }), "does not say when it ends"),
        (json!({ "exp": "soon" }), "is no time"),
        (json!({ "exp": 1e300 }), "is no time"),
        (json!({ "exp": NOW + 90_000 }), "more than a day"),
        (json!({ "nbf": NOW + 31 }), "not good yet"),
        (json!({ "iat": NOW + 31 }), "not good yet"),
        (json!({ "sub": null }), "does not say whose"),
        (json!({ "sub": "" }), "does not say whose"),
        (json!({ "sub": 7 }), "does not say whose"),
        (json!({ "cnf": { "x5t#S256": "x" } }), "bound to a key"),
        (json!({ "preferred_username": "a\nb" }), "cannot be told"),
    ] {
        let why = refusal(world.show(&world.token(changes.clone())).await);
        assert!(why.contains(wanted), "{changes}: {why}");
    }
    // Within what clocks may differ.
    for changes in [json!({ "exp": NOW - 29 }), json!({ "nbf": NOW + 29 }), json!({ "iat": NOW + 29 })] {
        assert!(matches!(world.show(&world.token(changes)).await, Verdict::Caller(_)));
    }
    // Of another issuer: somebody else may know it.
    let foreign = world.token(json!({ "iss": "https://evil.example" }));
    assert_eq!(world.show(&foreign).await, Verdict::NotMine);
}

#[tokio::test]
async fn nothing_in_a_token_says_how_it_is_verified() {
    let world = World::keycloak(json!({})).await;
    let good = world.token(json!({}));
    let body = good.rsplit_once('.').unwrap().0.split_once('.').unwrap().1.to_owned();
    let unsigned =
        |alg: &str| format!("{}.{body}.", encoded(&json!({ "alg": alg, "typ": "JWT", "kid": "k1" })));
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256", "ES256 ", "RS0"] {
        refusal(world.show(&unsigned(alg)).await);
    }
    // The issuer's public key as a secret that both would know, in every form in which it is known.
    let jwk = &world.mock.pair.jwk;
    let x = BASE64_URL_SAFE_NO_PAD.decode(jwk["x"].as_str().unwrap()).unwrap();
    let secrets =
        [jwk.to_string().into_bytes(), x, jwk["x"].as_str().unwrap().as_bytes().to_vec(), Vec::new()];
    for secret in secrets {
        let message = format!("{}.{body}", encoded(&json!({ "alg": "HS256", "typ": "JWT", "kid": "k1" })));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let signature = BASE64_URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
        let why = refusal(world.show(&format!("{message}.{signature}")).await);
        assert!(why.contains("an algorithm that counts here"), "{why}");
    }
    // Keys that the token brings along are not looked at.
    let evil = Pair::new("k1", Algorithm::ES256);
    let why = refusal(world.show(&evil.sign(Some("JWT"), &world.claims(json!({})))).await);
    assert!(why.contains("not signed by its issuer"), "{why}");
    let served = Mock::new(evil.clone()).await;
    let header = json!({
        "alg": "ES256", "typ": "JWT", "kid": "k1", "jwk": evil.jwk, "jku": format!("{}/keys", served.url()),
        "x5u": format!("{}/keys", served.url()),
    });
    let message = format!("{}.{body}", encoded(&header));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &evil.secret, Algorithm::ES256).unwrap();
    refusal(world.show(&format!("{message}.{signature}")).await);
    assert!(served.served.asked().is_empty(), "nobody was called whom a token names");
}

#[tokio::test]
async fn names_of_keys_are_names_and_nothing_else() {
    let world = World::keycloak(json!({})).await;
    for kid in [
        json!("../../etc/passwd"),
        json!("' OR 1=1 --"),
        json!("http://127.0.0.1/keys"),
        json!("k1\u{0}"),
        json!(""),
        json!("x".repeat(1000)),
        json!(["k1"]),
        json!({ "k1": 1 }),
        json!(1),
        Value::Null,
    ] {
        refusal(world.show(&with_header(&world, |header| header["kid"] = kid.clone())).await);
    }
    refusal(world.show(&with_header(&world, |header| header["crit"] = json!(["exp"]))).await);
    refusal(world.show(&with_header(&world, |header| header["typ"] = json!(["JWT"]))).await);
    refusal(world.show(&with_header(&world, |header| header["typ"] = json!("logout+jwt"))).await);
    // The algorithm is that of the key.
    refusal(world.show(&with_header(&world, |header| header["alg"] = json!("ES384"))).await);
    refusal(world.show(&with_header(&world, |header| header["alg"] = json!("RS256"))).await);
    // And that it is another name for the same key harms nobody: without a name the only key is meant.
    let unnamed = with_header(&world, |header| drop(header.as_object_mut().unwrap().remove("kid")));
    assert!(matches!(world.show(&unnamed).await, Verdict::Caller(_)));
}

#[tokio::test]
async fn what_is_huge_or_deep_is_no_token() {
    let world = World::keycloak(json!({})).await;
    let huge = world.token(json!({ "groups": vec!["x".repeat(100); 200] }));
    assert_eq!(world.show(&huge).await, Verdict::NotMine);
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let token = format!("{}.{}.x", encoded(&json!({ "alg": "ES256" })), BASE64_URL_SAFE_NO_PAD.encode(deep));
    assert_eq!(world.show(&token).await, Verdict::NotMine);
    let many: Vec<String> = (0..1001).map(|n| n.to_string()).collect();
    refusal(world.show(&world.token(json!({ "groups": many }))).await);
    for broken in ["", "a", "a.b", "a.b.c", "a.b.c.d", "..", "...", "eyJ9.eyJ9.", "\u{7f}.x.y"] {
        assert!(matches!(world.show(broken).await, Verdict::NotMine), "{broken}");
    }
    assert_eq!(world.mock.served.count("GET"), 2, "only the token with too many groups was worth a question");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is changed in a good token, by a bit or by a piece, it does not count any more.
    #[test]
    fn no_changed_token_counts(places in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..4)) {
        thread_local! {
            static WORLD: (tokio::runtime::Runtime, World, String) = {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let world = runtime.block_on(World::keycloak(json!({})));
                let token = world.token(json!({}));
                (runtime, world, token)
            };
        }
        WORLD.with(|(runtime, world, token)| {
            let mut bytes = token.clone().into_bytes();
            for (place, bit) in &places {
                let at = place.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            let Ok(changed) = String::from_utf8(bytes) else { return };
            let same = changed.trim() == token.as_str();
            let counts = matches!(runtime.block_on(world.show(&changed)), Verdict::Caller(_));
            assert!(same || !counts, "{changed}");
        });
    }
}
