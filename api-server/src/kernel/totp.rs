//! One-time codes by time (RFC 6238), as every app makes them: six digits, SHA-1, thirty seconds.

use ring::hmac;

use super::Timestamp;

/// For how long a code is shown, in seconds.
pub const STEP_SECONDS: i64 = 30;
/// Bytes of a key.
pub const KEY_BYTES: usize = 20;
/// Codes of so many steps before and after this one are taken: clocks differ.
const SKEW: i64 = 1;
const DIGITS: usize = 6;

/// Which step of time a moment is in.
pub fn step(at: Timestamp) -> i64 {
    at.0.div_euclid(STEP_SECONDS * 1_000_000)
}

/// The code of a step.
pub fn code(key: &[u8], step: i64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let bytes = tag.as_ref();
    // The last four bits say where the four bytes are that count (RFC 4226, 5.3).
    let at = bytes.last().map_or(0, |last| usize::from(last & 0xf));
    let mut number = [0; 4];
    for (to, from) in number.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    format!("{:06}", (u32::from_be_bytes(number) & 0x7fff_ffff) % 1_000_000)
}

/// The step whose code this is, among those around now and after `last`, which was taken before. How long it takes says
/// nothing of the code.
pub fn matching(key: &[u8], given: &str, now: Timestamp, last: i64) -> Option<i64> {
    let given: Vec<u8> = given.bytes().filter(|byte| *byte != b' ').collect();
    let now = step(now);
    let mut found = None;
    for candidate in now - SKEW..=now + SKEW {
        let wanted = code(key, candidate);
        let same = given.len() == DIGITS
            && wanted.bytes().zip(&given).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0;
        if same && candidate > last {
            found = Some(candidate);
        }
    }
    found
}

/// True if this can be a code at all.
pub fn looks_like_one(given: &str) -> bool {
    let digits = given.bytes().filter(|byte| *byte != b' ');
    given.bytes().all(|byte| byte.is_ascii_digit() || byte == b' ') && digits.count() == DIGITS
}

/// Base32 (RFC 4648) without padding: how apps take a key.
pub fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut held, mut bits) = (0_u32, 0);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(LETTERS[(held >> bits) as usize & 31]));
        }
    }
    if bits > 0 {
        text.push(char::from(LETTERS[(held << (5 - bits)) as usize & 31]));
    }
    text
}

/// What an app reads from a QR code. `who` is shown there.
pub fn uri(who: &str, key: &[u8]) -> String {
    let mut label = String::new();
    for byte in who.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => label.push(char::from(byte)),
            other => label.push_str(&format!("%{other:02X}")),
        }
    }
    let (key, period) = (base32(key), STEP_SECONDS);
    format!(
        "otpauth://totp/Rhyzome:{label}?secret={key}&issuer=Rhyzome&algorithm=SHA1&digits={DIGITS}&period={period}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"12345678901234567890";

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    #[test]
    fn the_vectors_of_the_standard() {
        // RFC 6238, appendix B: the last six of eight digits.
        for (seconds, wanted) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(code(KEY, step(at(seconds))), wanted);
        }
        // RFC 4226, appendix D.
        assert_eq!((code(KEY, 0).as_str(), code(KEY, 9).as_str()), ("755224", "520489"));
        // RFC 4648, 10.
        assert_eq!((base32(b"foobar").as_str(), base32(b"foob").as_str()), ("MZXW6YTBOI", "MZXW6YQ"));
        assert_eq!(base32(b"").as_str(), "");
    }

    #[test]
    fn one_step_beside_and_never_twice() {
        let (now, step) = (at(1000 * STEP_SECONDS), 1000);
        for candidate in [999, 1000, 1001] {
            assert_eq!(matching(KEY, &code(KEY, candidate), now, 0), Some(candidate));
            assert_eq!(matching(KEY, &code(KEY, candidate), now, candidate), None);
        }
        for outside in [998, 1002] {
            assert_eq!(matching(KEY, &code(KEY, outside), now, 0), None);
        }
        let shown = code(KEY, step);
        assert_eq!(matching(KEY, &format!("{} {}", &shown[..3], &shown[3..]), now, 0), Some(step));
        for bad in ["", "12345", "1234567", &format!("{shown}0"), &shown[..5]] {
            assert_eq!(matching(KEY, bad, now, 0), None, "{bad}");
        }
        assert!(looks_like_one("123 456") && !looks_like_one("12345") && !looks_like_one("abcdef"));
    }

    #[test]
    fn an_app_reads_it() {
        assert_eq!(
            uri("anna b@corp", KEY),
            "otpauth://totp/Rhyzome:anna%20b%40corp?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Rhyzome\
             &algorithm=SHA1&digits=6&period=30"
        );
    }
}
