use super::resolver::{self, Setting};
use super::ruleset::Ruleset;
use super::*;
use std::path::Path;

fn network() -> DesiredNetwork {
    DesiredNetwork {
        id: "net_019a8c5e7b3a7f10a2b3c4d5e6f70819".into(),
        cidr: "10.0.0.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        nat: true,
        dns: Vec::new(),
        domain: "lan.example".into(),
        ports: vec![port(1), port(2)],
    }
}

fn port(number: u8) -> Port {
    Port {
        instance_id: format!("inst_{number}"),
        nic: "lan".into(),
        tap: crate::names::tap(&format!("inst_{number}"), "lan"),
        mac: format!("52:54:00:AB:00:0{number}"),
        address: Ipv4Addr::new(10, 0, 0, 4 + number),
        hostname: format!("web-{number}"),
    }
}

fn setting<'a>(dns: &'a [IpAddr]) -> Setting<'a> {
    Setting { folder: Path::new("/state/networks/n"), lease_seconds: 60, node_dns: dns, user: None }
}

/// Compares with a file beside the sources; `RHYZOME_BLESS=1 cargo test` writes it anew.
#[track_caller]
fn golden(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/drivers/network/golden").join(name);
    if std::env::var_os("RHYZOME_BLESS").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, expected, "{name} differs; if that is meant: RHYZOME_BLESS=1 cargo test golden");
}

#[test]
fn golden_rulesets() {
    golden("ruleset-nat.nft", &Ruleset::of_network(&network(), Some(Uplink::of_slot(3))).script());
    let isolated = DesiredNetwork { nat: false, ..network() };
    golden("ruleset-isolated.nft", &Ruleset::of_network(&isolated, None).script());
    golden("ruleset-node.nft", &Ruleset::of_node().script());
}

#[test]
fn golden_resolver_files() {
    let dns = ["192.0.2.53".parse().unwrap()];
    golden("dnsmasq-nat.conf", &resolver::configuration(&network(), &setting(&dns)));
    let isolated = DesiredNetwork { nat: false, ..network() };
    golden("dnsmasq-isolated.conf", &resolver::configuration(&isolated, &setting(&dns)));
    golden("dhcp-hosts", &resolver::reservations(&network()));
    golden("hosts", &resolver::names(&network()));
}

#[test]
fn own_resolvers_win_over_those_of_the_node() {
    let wanted = DesiredNetwork { dns: vec!["198.51.100.1".parse().unwrap()], ..network() };
    let text = resolver::configuration(&wanted, &setting(&["192.0.2.53".parse().unwrap()]));
    assert!(text.contains("server=198.51.100.1\n") && !text.contains("192.0.2.53"), "{text}");
    let file = "# c\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\nsearch x\n";
    assert_eq!(resolver::usable_resolvers(file), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_new_port_is_a_few_elements() {
    let before = DesiredNetwork { ports: vec![port(1)], ..network() };
    let link = Some(Uplink::of_slot(3));
    let (old, new) = (Ruleset::of_network(&before, link), Ruleset::of_network(&network(), link));
    let text = new.difference(&old).unwrap();
    assert_eq!(text.matches("add element").count(), 4, "{text}");
    assert!(!text.contains("delete") && !text.contains("10.0.0.5") && text.contains("10.0.0.6"), "{text}");
    assert_eq!(new.difference(&new).unwrap(), "");
    assert_eq!(old.difference(&new).unwrap().matches("delete element").count(), 4);
    assert_eq!(Ruleset::of_network(&network(), None).difference(&new), None);
    // The order in which ports are listed is no difference.
    let turned = DesiredNetwork { ports: vec![port(2), port(1)], ..network() };
    assert_eq!(Ruleset::of_network(&turned, link), new);
    assert_eq!(resolver::reservations(&turned), resolver::reservations(&network()));
}

#[test]
fn uplinks_are_apart_from_each_other_and_from_the_node() {
    let first = choose_slot("a", &[], &[]).unwrap();
    assert_eq!(choose_slot("a", &[], &[]), Some(first));
    assert_eq!(choose_slot("a", &[first], &[]), Some((first + 1) % (1 << 21)));
    let own = Ipv4Net::new_assert(Uplink::of_slot(first).inner, 32);
    assert_ne!(choose_slot("a", &[], &[own]), Some(first));
    // All of the pool is somebody else's.
    assert_eq!(choose_slot("a", &[], &["100.64.0.0/10".parse().unwrap()]), None);
    // A default route is nobody's address.
    assert_eq!(choose_slot("a", &[], &["0.0.0.0/0".parse().unwrap()]), Some(first));
    let link = Uplink::of_slot((1 << 21) - 1);
    assert_eq!(link.inner, Ipv4Addr::new(100, 127, 255, 255));
    assert_eq!(link.outer, Ipv4Addr::new(100, 127, 255, 254));
}

#[test]
fn what_could_be_more_than_a_value_is_refused() {
    assert_eq!(check(&network()), Ok(()));
    type Change = fn(&mut DesiredNetwork);
    let wrong: [(&str, Change); 12] = [
        ("folder", |n| n.id = "../x".into()),
        ("gateway", |n| n.gateway = Ipv4Addr::new(10, 0, 1, 1)),
        ("gateway", |n| n.gateway = Ipv4Addr::new(10, 0, 0, 255)),
        ("domain", |n| n.domain = "a\nserver=1.2.3.4".into()),
        ("domain", |n| n.domain = String::new()),
        ("tap", |n| n.ports[0].tap = "a\" accept".into()),
        ("MAC", |n| n.ports[0].mac = "01:00:5e:00:00:01".into()),
        ("MAC", |n| n.ports[0].mac = "52:54:00:ab:00".into()),
        ("host name", |n| n.ports[1].hostname = "web,set:x".into()),
        ("not free", |n| n.ports[1].address = n.gateway),
        ("already", |n| n.ports[1].address = n.ports[0].address),
        ("already", |n| n.ports[1].mac = n.ports[0].mac.to_ascii_lowercase()),
    ];
    for (word, change) in wrong {
        let mut network = network();
        change(&mut network);
        let error = check(&network).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn only_leases_that_are_still_promised_stay() {
    let good = "1700000000 52:54:00:ab:00:01 10.0.0.5 web-1 *\n";
    assert_eq!(resolver::without_broken_leases(good, &network()), None);
    let moved = format!("{good}1700000000 52:54:00:ab:00:09 10.0.0.6 * *\n");
    assert_eq!(resolver::without_broken_leases(&moved, &network()).as_deref(), Some(good));
}
