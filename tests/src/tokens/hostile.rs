//! What can be wrong with a token. Each flaw is in one part of it, so that no two of them make it good again.

use ring::hmac;
use serde_json::{Map, Value, json};

use super::issuer::Key;
use super::{AUDIENCE, CLIENT, Keys, NOW, encoded};
use crate::given::Dice;

/// A token that is not written yet.
pub struct Draft {
    /// Its header.
    pub header: Map<String, Value>,
    /// What it says.
    pub claims: Map<String, Value>,
    /// Which of the issuer's keys it is for.
    pub key: usize,
    /// How it is signed, unless by that key.
    pub signed: Signed,
    /// What is changed behind the signature's back.
    pub swapped: Option<Map<String, Value>>,
    /// What becomes of the text.
    pub frame: fn(String, &mut Dice) -> String,
}

/// How it is signed.
pub enum Signed {
    /// As it should be.
    Well,
    /// By a key of the same kind that is not the issuer's.
    ByStranger,
    /// By the key that the issuer has for something else.
    ForAnotherUse,
    /// By a secret that everybody has.
    Hmac(hmac::Algorithm, Vec<u8>),
    /// The signature is made into something else.
    Spoilt(fn(Vec<u8>, &mut Dice) -> Vec<u8>),
}

/// What the token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Shown to the API.
    Access,
    /// Said by the issuer: a login has ended.
    Logout,
}

type Spoil = fn(&mut Draft, &mut Dice, &Keys);

/// The flaws of one part of a token.
pub struct Part {
    /// What it is called in figures.
    pub name: &'static str,
    /// How often it is drawn, beside the others: what is looked at late costs more.
    pub weight: u64,
    /// Of which tokens.
    pub of: &'static [Purpose],
    /// Makes it bad.
    pub spoil: Spoil,
}

const BOTH: &[Purpose] = &[Purpose::Access, Purpose::Logout];
const ACCESS: &[Purpose] = &[Purpose::Access];
const LOGOUT: &[Purpose] = &[Purpose::Logout];

/// The one flaw for which none of the issuer's keys signs.
pub const AS_A_SECRET: &str = "public key as a secret";

/// All parts.
pub const PARTS: [Part; 18] = [
    Part { name: "alg none", weight: 24, of: BOTH, spoil: none },
    Part { name: AS_A_SECRET, weight: 40, of: BOTH, spoil: confused },
    Part { name: "alg that does not count", weight: 24, of: BOTH, spoil: strange_algorithm },
    Part { name: "alg of another key", weight: 16, of: BOTH, spoil: other_algorithm },
    Part { name: "kid", weight: 40, of: BOTH, spoil: kid },
    Part { name: "crit and typ of the header", weight: 20, of: BOTH, spoil: header },
    Part { name: "frame", weight: 40, of: BOTH, spoil: frame },
    Part { name: "iss", weight: 30, of: BOTH, spoil: issuer },
    Part { name: "key of a stranger", weight: 2, of: BOTH, spoil: stranger },
    Part { name: "signature", weight: 2, of: BOTH, spoil: signature },
    Part { name: "claims changed later", weight: 2, of: BOTH, spoil: swapped },
    Part { name: "key for another use", weight: 2, of: BOTH, spoil: another_use },
    Part { name: "aud", weight: 2, of: BOTH, spoil: audience },
    Part { name: "kind of token", weight: 2, of: BOTH, spoil: kind },
    Part { name: "time", weight: 2, of: BOTH, spoil: time },
    Part { name: "azp", weight: 1, of: ACCESS, spoil: client },
    Part { name: "sub and cnf", weight: 2, of: ACCESS, spoil: subject },
    Part { name: "what a logout must say", weight: 2, of: LOGOUT, spoil: logout },
];

fn any<T: Clone>(dice: &mut Dice, all: &[T]) -> T {
    all[usize::try_from(dice.below(all.len() as u64)).unwrap()].clone()
}

/// A text that nobody has thought of.
pub fn text(dice: &mut Dice) -> String {
    let signs =
        ['a', 'Z', '0', '-', '.', '/', '\'', '"', '\\', '\n', '\u{0}', 'é', '\u{202e}', '{', ' ', '%'];
    (0..dice.below(20)).map(|_| any(dice, &signs)).collect()
}

/// A value that is no text.
fn no_text(dice: &mut Dice) -> Value {
    let all = [
        json!(null),
        json!(true),
        json!(7),
        json!(-1),
        json!([]),
        json!({}),
        json!(1e300),
        json!(["x"]),
        json!({ "x": 1 }),
    ];
    any(dice, &all)
}

fn set(map: &mut Map<String, Value>, name: &str, value: Value) {
    map.insert(name.to_owned(), value);
}

/// Says something more, which must make no difference.
pub fn noise(draft: &mut Draft, dice: &mut Dice, keys: &Keys) {
    let stranger = &keys.strangers[draft.key];
    match dice.below(6) {
        0 => set(&mut draft.header, "jku", json!("http://127.0.0.1:9/keys")),
        1 => set(&mut draft.header, "x5u", json!("file:///etc/passwd")),
        2 => set(&mut draft.header, "jwk", stranger.jwk.clone()),
        3 => set(&mut draft.header, "x5c", json!(["MIIB"])),
        4 => set(&mut draft.claims, "scope", json!(text(dice))),
        _ => set(&mut draft.claims, &format!("x-{}", dice.below(1000)), json!({ "x": text(dice) })),
    }
}

// === the signature ===

fn none(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    let word: String =
        "none".chars().map(|c| if dice.percent(50) { c.to_ascii_uppercase() } else { c }).collect();
    set(&mut draft.header, "alg", json!(word));
    if dice.percent(70) {
        draft.signed = Signed::Spoilt(|_, _| Vec::new());
    }
}

fn confused(draft: &mut Draft, dice: &mut Dice, keys: &Keys) {
    let secret = any(dice, &keys.own[draft.key].forms);
    let (name, algorithm) = any(
        dice,
        &[("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)],
    );
    // Said to be that, or to be what the key is for.
    if dice.percent(80) {
        set(&mut draft.header, "alg", json!(name));
    }
    if dice.percent(20) {
        set(&mut draft.header, "kid", json!("symmetric"));
        set(&mut draft.header, "alg", json!("HS256"));
        draft.signed = Signed::Hmac(hmac::HMAC_SHA256, keys.symmetric.clone());
        return;
    }
    draft.signed = Signed::Hmac(algorithm, secret);
}

fn strange_algorithm(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    let names =
        ["", "ES256K", "RS1", "ES512", "es256", "RS256 ", "RS256\u{0}", "PS384", "HS256", "dir", "ECDH-ES"];
    let value = if dice.percent(70) { json!(any(dice, &names)) } else { no_text(dice) };
    set(&mut draft.header, "alg", value);
    if dice.percent(10) {
        draft.header.remove("alg");
    }
}

fn other_algorithm(draft: &mut Draft, dice: &mut Dice, keys: &Keys) {
    let others: Vec<&str> = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
        .into_iter()
        .filter(|alg| *alg != keys.own[draft.key].alg)
        .collect();
    set(&mut draft.header, "alg", json!(any(dice, &others)));
}

fn kid(draft: &mut Draft, dice: &mut Dice, keys: &Keys) {
    let names = [
        "../../../../dev/null",
        "/proc/self/environ",
        "' OR '1'='1",
        "x' UNION SELECT 'secret' --",
        "http://127.0.0.1:9/keys",
        "file:///etc/passwd",
        "$(id)",
        "{{7*7}}",
        "%00",
        "\u{0}",
        "",
        " ",
        "*",
        "kid",
        "null",
    ];
    let own = keys.own[draft.key].kid;
    let value = match dice.below(6) {
        0 => no_text(dice),
        1 => json!(format!("{own}{}", any(dice, &["\u{0}", " ", "/", "'", "\n", ".", "%20"]))),
        2 => json!("k".repeat(257 + usize::try_from(dice.below(3000)).unwrap())),
        3 => json!([own]),
        4 => json!(format!("x{}", dice.roll())),
        _ => json!(any(dice, &names)),
    };
    // Without a name the only key that fits is meant, so that is no flaw.
    set(&mut draft.header, "kid", value);
}

fn stranger(draft: &mut Draft, dice: &mut Dice, keys: &Keys) {
    draft.signed = Signed::ByStranger;
    let jwk = keys.strangers[draft.key].jwk.clone();
    if dice.percent(50) {
        set(&mut draft.header, "jwk", jwk);
        set(&mut draft.header, "jku", json!(keys.lure));
        set(&mut draft.header, "x5u", json!(keys.lure));
    }
}

fn another_use(draft: &mut Draft, _: &mut Dice, keys: &Keys) {
    set(&mut draft.header, "kid", json!(keys.encrypts.kid));
    set(&mut draft.header, "alg", json!(keys.encrypts.alg));
    draft.signed = Signed::ForAnotherUse;
}

fn signature(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    draft.signed = Signed::Spoilt(any(
        dice,
        &[
            |bytes: Vec<u8>, _: &mut Dice| vec![0; bytes.len()],
            |bytes: Vec<u8>, dice: &mut Dice| {
                bytes[..usize::try_from(dice.below(bytes.len() as u64)).unwrap()].to_vec()
            },
            |mut bytes: Vec<u8>, dice: &mut Dice| {
                let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
                bytes[at] ^= 1 << dice.below(8);
                bytes
            },
            |bytes: Vec<u8>, _: &mut Dice| [&bytes[bytes.len() / 2..], &bytes[..bytes.len() / 2]].concat(),
            |bytes: Vec<u8>, _: &mut Dice| [&[0x30, 0x44, 0x02, 0x20][..], &bytes].concat(),
            |bytes: Vec<u8>, _: &mut Dice| [bytes, vec![0]].concat(),
            |bytes: Vec<u8>, _: &mut Dice| vec![0xff; bytes.len()],
            |bytes: Vec<u8>, dice: &mut Dice| bytes.iter().map(|_| dice.roll().to_le_bytes()[0]).collect(),
        ],
    ));
}

fn swapped(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    let mut claims = draft.claims.clone();
    match dice.below(4) {
        0 => set(&mut claims, "sub", json!("u-2")),
        1 => set(&mut claims, "groups", json!(["/ops", "cloud-admin"])),
        2 => set(&mut claims, "exp", json!(NOW + 80_000)),
        _ => set(&mut claims, "sid", json!(text(dice) + "x")),
    }
    draft.swapped = Some(claims);
}

// === the header and the frame ===

fn header(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    match dice.below(3) {
        0 => set(
            &mut draft.header,
            "crit",
            any(dice, &[json!(["exp"]), json!([]), json!(["b64"]), json!("exp"), json!(null)]),
        ),
        1 => {
            set(&mut draft.header, "b64", json!(false));
            set(&mut draft.header, "crit", json!(["b64"]));
        }
        _ => set(&mut draft.header, "typ", no_text(dice)),
    }
}

fn frame(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    fn middle(text: &str, dice: &mut Dice) -> usize {
        1 + usize::try_from(dice.below(text.len() as u64 - 2)).unwrap()
    }
    if dice.percent(10) {
        // No issuer signs that, and if one does nobody walks down.
        let deep = (0..200).fold(json!(1), |deep, _| json!([deep]));
        set(&mut draft.claims, "deep", deep);
        return;
    }
    draft.frame = any(
        dice,
        &[
            |token: String, _: &mut Dice| format!("{token}.x"),
            |token: String, _: &mut Dice| format!("{token}.."),
            |token: String, _: &mut Dice| format!(".{token}"),
            |token: String, _: &mut Dice| token.rsplit_once('.').unwrap().0.to_owned(),
            |token: String, _: &mut Dice| token.rsplit_once('.').unwrap().0.to_owned() + ".",
            |token: String, _: &mut Dice| token.replacen('.', "..", 1),
            |token: String, _: &mut Dice| format!("{token}="),
            |token: String, _: &mut Dice| token.replacen('.', "=.", 2),
            |token: String, _: &mut Dice| format!("{token}{token}"),
            |token: String, dice: &mut Dice| {
                let at = middle(&token, dice);
                format!(
                    "{}{}{}",
                    &token[..at],
                    any(dice, &[" ", "\t", "\u{0}", "é", "+", "/", "%2e", "\""]),
                    &token[at..]
                )
            },
            |token: String, dice: &mut Dice| {
                let at = middle(&token, dice);
                let (sign, mut token) = (token.as_bytes()[at], token);
                let other = any(dice, b"AQgw09-_").to_owned();
                token.replace_range(
                    at..=at,
                    std::str::from_utf8(&[if sign == other { b'!' } else { other }]).unwrap(),
                );
                token
            },
            |token: String, dice: &mut Dice| token[..middle(&token, dice)].to_owned(),
            // The bits that no byte is made of.
            |token: String, _: &mut Dice| {
                let (rest, last) = token.split_at(token.len() - 1);
                let signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
                let value = signs.find(last).map_or(0, |value| (value + 1) % signs.len());
                format!("{rest}{}", &signs[value..=value])
            },
            |token: String, _: &mut Dice| {
                let mut parts = token.split('.');
                let mut part = || parts.next().unwrap();
                json!({ "protected": part(), "payload": part(), "signature": part() }).to_string()
            },
            |token: String, _: &mut Dice| {
                let (head, rest) = token.split_once('.').unwrap();
                format!("{head}.{}.{rest}", encoded(&json!({ "x": "y".repeat(20_000) })))
            },
        ],
    );
}

// === the claims ===

fn issuer(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    let own = draft.claims["iss"].as_str().unwrap().to_owned();
    let value = match dice.below(7) {
        0 => json!(format!("{own}/")),
        1 => json!(own.to_ascii_uppercase()),
        2 => json!("https://evil.example"),
        3 => json!([own]),
        4 => json!(format!("{own}@evil.example")),
        5 => json!(format!("{own}\u{0}")),
        _ => no_text(dice),
    };
    set(&mut draft.claims, "iss", value);
}

fn audience(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    let logout = draft.claims.contains_key("events");
    let good = if logout { CLIENT } else { AUDIENCE };
    let value = match dice.below(8) {
        0 => json!("shop"),
        1 => json!(["shop", "account"]),
        2 => json!(format!("{good} ")),
        3 => json!(good.to_ascii_uppercase()),
        4 => json!([[good]]),
        5 => json!({ good: true }),
        6 => json!(format!("shop,{good}")),
        _ => no_text(dice),
    };
    set(&mut draft.claims, "aud", value);
    if dice.percent(10) {
        draft.claims.remove("aud");
    }
}

fn kind(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    if draft.claims.contains_key("events") {
        let typ = any(dice, &["at+jwt", "secevent+jwt", "dpop+jwt", "JWE", "x", ""]);
        return set(&mut draft.header, "typ", json!(typ));
    }
    match dice.below(4) {
        0 => set(
            &mut draft.header,
            "typ",
            json!(any(dice, &["logout+jwt", "secevent+jwt", "dpop+jwt", "JWE", "id+jwt", "x"])),
        ),
        1 => {
            draft.claims.remove("typ");
        }
        2 => set(
            &mut draft.claims,
            "typ",
            json!(any(dice, &["ID", "Refresh", "Offline", "Logout", "bearer", "Bearer ", ""])),
        ),
        _ => {
            set(&mut draft.header, "typ", json!("at+jwt"));
            set(&mut draft.claims, "typ", json!("ID"));
        }
    }
}

fn time(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    let far = i64::try_from(dice.below(1 << 30)).unwrap();
    let absurd = [
        json!("1790000300"),
        json!([1]),
        json!({}),
        json!(true),
        json!(-1),
        json!(1e300),
        json!(-1e300),
        json!(i64::MIN),
        json!(u64::MAX),
    ];
    if draft.claims.contains_key("events") {
        let (name, value) = match dice.below(5) {
            0 => ("iat", json!(NOW - 301 - far)),
            1 => ("iat", json!(NOW + 31 + far)),
            2 => ("iat", any(dice, &absurd)),
            3 => ("exp", any(dice, &absurd)),
            _ => ("exp", json!(NOW - 31 - far)),
        };
        return set(&mut draft.claims, name, value);
    }
    let (name, value) = match dice.below(8) {
        0 => ("exp", json!(NOW - 30 - far)),
        1 => ("exp", json!(NOW + 24 * 3600 + 31 + far)),
        2 => ("nbf", json!(NOW + 31 + far)),
        3 => ("iat", json!(NOW + 31 + far)),
        4 => ("exp", any(dice, &absurd)),
        5 => ("nbf", any(dice, &absurd[..4])),
        6 => ("iat", any(dice, &absurd)),
        _ => ("exp", Value::Null),
    };
    set(&mut draft.claims, name, value);
}

fn client(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    let value =
        if dice.percent(60) { json!(any(dice, &["shop", "Shell", "shell ", ""])) } else { no_text(dice) };
    set(&mut draft.claims, "azp", value);
}

fn subject(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    if dice.percent(40) {
        let cnf = any(
            dice,
            &[json!({ "x5t#S256": "x" }), json!({ "jkt": "x" }), json!(null), json!({}), json!("x")],
        );
        return set(&mut draft.claims, "cnf", cnf);
    }
    let value = match dice.below(3) {
        0 => json!(any(dice, &["", "u\n1", "u\u{0}", "\u{1b}[2J"])),
        1 => json!("u".repeat(257)),
        _ => no_text(dice),
    };
    set(&mut draft.claims, "sub", value);
}

fn logout(draft: &mut Draft, dice: &mut Dice, _: &Keys) {
    let claims = &mut draft.claims;
    match dice.below(7) {
        0 => set(claims, "events", any(dice, &[json!({}), json!([]), json!({ "x": {} }), json!("logout")])),
        1 => set(claims, "nonce", json!(text(dice))),
        2 => drop(claims.remove("jti")),
        3 => drop(claims.remove("iat")),
        4 => {
            claims.remove("sid");
            claims.remove("sub");
        }
        5 => set(claims, "sid", json!(any(dice, &["s\n1", "s\u{0}", "\u{1b}[2J"]))),
        _ => set(claims, "sub", json!("s".repeat(257))),
    }
}

/// Of this key, or of the one that is meant.
pub fn signer<'a>(draft: &Draft, keys: &'a Keys) -> &'a Key {
    match draft.signed {
        Signed::ByStranger => &keys.strangers[draft.key],
        Signed::ForAnotherUse => &keys.encrypts,
        _ => &keys.own[draft.key],
    }
}
