//! Addresses that the server calls on nobody's behalf: its own, private ones, and whatever is none of the
//! internet's. Addresses within addresses (mapped, translated, tunnelled) are judged by what is within.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What may be called.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Allowed by the operator, whatever else is said of it.
    pub allow: Vec<IpNet>,
    /// Of this machine: never, unless allowed.
    pub own: Vec<IpAddr>,
}

/// All addresses of this machine, now.
pub fn own_addresses() -> Vec<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|one| one.address);
    let ip = |address: nix::sys::socket::SockaddrStorage| match (
        address.as_sockaddr_in(),
        address.as_sockaddr_in6(),
    ) {
        (Some(v4), _) => Some(IpAddr::from(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::from(v6.ip())),
        _ => None,
    };
    all.filter_map(ip).collect()
}

/// First address, length of the prefix, and why nobody is called there.
const V4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this machine"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "a private range"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a provider's private range"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "this machine"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "the local link"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "a private range"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "a reserved range"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "a range for examples"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a reserved range"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "a private range"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "a range for benchmarks"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "a range for examples"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "a range for examples"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "a multicast range"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "a reserved range"),
];

impl Rules {
    /// Why this address is not called; `None` if it may be.
    pub fn refuse(&self, address: IpAddr) -> Option<&'static str> {
        let address = innermost(address);
        if self.allow.iter().any(|range| range.contains(&address)) {
            return None;
        }
        if self.own.iter().any(|own| innermost(*own) == address) {
            return Some("this machine");
        }
        match address {
            IpAddr::V4(v4) => {
                let bits = u32::from(v4);
                let within = |first: &Ipv4Addr, length: u8| (bits ^ u32::from(*first)) >> (32 - length) == 0;
                V4.iter().find(|(first, length, _)| within(first, *length)).map(|(.., why)| *why)
            }
            IpAddr::V6(v6) => refuse_v6(v6),
        }
    }
}

fn refuse_v6(address: Ipv6Addr) -> Option<&'static str> {
    let parts = address.segments();
    match parts {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Some("this machine"),
        [0xfc00..=0xfdff, ..] => Some("a private range"),
        [0xfe80..=0xfeff, ..] => Some("the local link"),
        [0xff00..=0xffff, ..] => Some("a multicast range"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("a range for examples"),
        // Teredo hides an address that cannot be judged; the rest of this block is not the internet's either.
        [0x2001, 0..=0x1ff, ..] => Some("a reserved range"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("a reserved range"),
    }
}

/// The IPv4 address that an IPv6 one stands for, if it stands for one.
fn innermost(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::from([a, b, c, d])
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        // Mapped, compatible, translated (RFC 2765), NAT64 (RFC 6052), 6to4.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_internet_is_called() {
        let rules = Rules { allow: Vec::new(), own: vec!["93.184.216.9".parse().unwrap()] };
        let refused = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.9",
            "224.0.0.1",
            "255.255.255.255",
            "93.184.216.9",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001:0:1:2::3",
            "2001:db8::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "::ffff:93.184.216.9",
            "4000::1",
        ];
        for text in refused {
            assert!(rules.refuse(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "198.20.0.1",
            "2606:4700::1111",
            "2002:101:101::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert_eq!(rules.refuse(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn what_an_operator_allows_is_called() {
        let rules = Rules { allow: vec!["10.1.0.0/16".parse().unwrap()], own: Vec::new() };
        assert_eq!(rules.refuse("10.1.2.3".parse().unwrap()), None);
        assert_eq!(rules.refuse("::ffff:10.1.2.3".parse().unwrap()), None);
        assert!(rules.refuse("10.2.0.1".parse().unwrap()).is_some());
    }
}
