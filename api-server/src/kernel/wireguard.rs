//! What kinds say of WireGuard: keys, ranges, endpoints. Pure.

use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ipnet::IpNet;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::Fact;
use super::secret::{self, Plain};

/// Where WireGuard listens by custom, and where ports are looked for from.
pub const PORT: u16 = 51820;
/// What a key that cannot be one is told.
pub const KEY_REASON: &str =
    "must be a WireGuard key: 32 bytes in base64, 44 characters, as `wg genkey` and `wg pubkey` print them";

/// The 32 bytes of a key as `wg` prints it; `None` if it is none.
pub fn parse_key(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(BASE64_STANDARD.decode(text).ok()?);
    let key: [u8; 32] = bytes.as_slice().try_into().ok()?;
    // With nothing but zeros no secret can be agreed on.
    (key != [0; 32]).then(|| Zeroizing::new(key))
}

/// What is wrong with a private key, or with what stands for one.
pub fn refuse_key(text: &str) -> Option<&'static str> {
    (secret::id_of(text).is_none() && parse_key(text).is_none()).then_some(KEY_REASON)
}

/// A private key from random bytes.
pub fn private_key(random: [u8; 32]) -> Plain {
    let secret = StaticSecret::from(*Zeroizing::new(random));
    // Clamped, as `wg genkey` writes it.
    let mut bytes = Zeroizing::new(secret.to_bytes());
    bytes[0] &= 248;
    bytes[31] = (bytes[31] & 127) | 64;
    Plain::new(BASE64_STANDARD.encode(bytes.as_slice()))
}

/// The public half of a private key; `None` if it is no key.
pub fn public_key(private: &str) -> Option<String> {
    let secret = StaticSecret::from(*parse_key(private)?);
    Some(BASE64_STANDARD.encode(PublicKey::from(&secret).as_bytes()))
}

/// The public half of the key of a pool or a server, as others know it.
pub fn server_key(server: &Fact) -> Option<&str> {
    let known = secret::known_key(server.spec.get("private_key")?.as_str()?);
    server.claims.get(&known)?.as_str()
}

/// A range without bits beyond its prefix, or what is wrong with it.
pub fn parse_range(text: &str) -> Result<IpNet, String> {
    let range: IpNet =
        text.parse().map_err(|_| "must be a range in CIDR form, such as 10.9.0.0/24 or 2001:db8::/48")?;
    if range.addr() != range.network() {
        return Err(format!("has bits beyond its prefix: did you mean {}?", range.trunc()));
    }
    let first = range.network();
    if first.is_multicast() || first.is_loopback() || range.addr().is_unspecified() && range.prefix_len() > 0
    {
        return Err("must not be multicast, loopback or `this network`".to_owned());
    }
    Ok(range)
}

/// Whether two ranges have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// One address as a range.
pub fn only(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// The address after the first of a range; the first, where there is but one.
pub fn second(range: IpNet) -> IpAddr {
    let next = match range.network() {
        IpAddr::V4(first) => IpAddr::from((u32::from(first).wrapping_add(1)).to_be_bytes()),
        IpAddr::V6(first) => IpAddr::from((u128::from(first).wrapping_add(1)).to_be_bytes()),
    };
    if range.contains(&next) { next } else { range.network() }
}

/// The ends of the range of a server that nobody else is given: its first two addresses, of which the second is its own,
/// and, of IPv4, the last, which is everybody's.
pub fn ends(range: IpNet) -> (IpNet, Option<IpNet>) {
    let length = range.max_prefix_len() - 1;
    let first = IpNet::new(range.network(), length.max(range.prefix_len())).unwrap_or(range);
    (first, matches!(range, IpNet::V4(_)).then(|| only(range.broadcast())))
}

/// `host:port`, with brackets around an IPv6 address.
pub fn endpoint(host: &str, port: &str) -> String {
    match host.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

/// Why this is no name and no address of a host.
pub fn refuse_host(text: &str) -> Option<&'static str> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.len() <= 253 && text.split('.').all(label);
    let reason = "must be a name or an address that clients reach, such as vpn.example.com or 203.0.113.7";
    (text.parse::<IpAddr>().is_err() && !name).then_some(reason)
}

/// Why this is no `host:port`.
pub fn refuse_endpoint(text: &str) -> Option<&'static str> {
    let reason = "must be HOST:PORT, such as vpn.example.com:51820 or [2001:db8::7]:51820";
    let Some((host, port)) = text.rsplit_once(':') else { return Some(reason) };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) if matches!(inner.parse(), Ok(IpAddr::V6(_))) => inner,
        Some(_) => return Some(reason),
        None if host.contains(':') => return Some(reason),
        None => host,
    };
    let port: Option<u16> = port.parse().ok().filter(|port| *port > 0);
    (port.is_none() || refuse_host(host).is_some()).then_some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of RFC 7748, section 6.1.
    #[test]
    fn the_public_half_is_what_others_make_of_it() {
        let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        assert_eq!(public_key(private).unwrap(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        assert_eq!(public_key("hush"), None);
        let made = private_key([255; 32]);
        let bytes = parse_key(made.reveal()).unwrap();
        assert_eq!((bytes[0] & 7, bytes[31] & 192), (0, 64));
        assert!(public_key(made.reveal()).is_some());
    }

    #[test]
    fn keys_are_judged() {
        assert!(parse_key("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=").is_some());
        let zeros = BASE64_STANDARD.encode([0; 32]);
        for bad in ["", "hSDw", "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo", &zeros, &"A".repeat(44)] {
            assert!(parse_key(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_refused_with_the_way_out() {
        assert!(parse_range("10.9.0.0/24").is_ok() && parse_range("2001:db8::/40").is_ok());
        assert!(parse_range("10.9.0.1/24").unwrap_err().contains("did you mean 10.9.0.0/24?"));
        assert!(parse_range("2001:db8::1/40").unwrap_err().contains("did you mean 2001:db8::/40?"));
        for bad in ["10.9.0.0", "10.9.0.0/33", "x", "224.0.0.0/4", "::1/128", "127.0.0.0/8", "0.0.0.0/8"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ends_and_second_addresses() {
        let range = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(second(range("10.9.0.0/24")).to_string(), "10.9.0.1");
        assert_eq!(second(range("10.9.0.4/32")).to_string(), "10.9.0.4");
        assert_eq!(second(range("2001:db8::/40")).to_string(), "2001:db8::1");
        let (first, last) = ends(range("10.9.0.0/24"));
        assert_eq!(
            (first.to_string(), last.unwrap().to_string()),
            ("10.9.0.0/31".into(), "10.9.0.255/32".into())
        );
        let (first, last) = ends(range("fd00::/64"));
        assert_eq!((first.to_string(), last), ("fd00::/127".into(), None));
    }

    #[test]
    fn hosts_and_endpoints_are_judged() {
        for good in ["vpn.example.com:51820", "203.0.113.7:1", "[2001:db8::7]:51820"] {
            assert_eq!(refuse_endpoint(good), None, "{good}");
        }
        for bad in
            ["", "vpn", "vpn:0", "vpn:70000", "2001:db8::7:51820", "[vpn]:1", "a b:1", "-a:1", "a..b:1"]
        {
            assert!(refuse_endpoint(bad).is_some(), "{bad}");
        }
        assert_eq!(endpoint("2001:db8::7", "51820"), "[2001:db8::7]:51820");
        assert_eq!(endpoint("vpn.example.com", "51820"), "vpn.example.com:51820");
    }
}
