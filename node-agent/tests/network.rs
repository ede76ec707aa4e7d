//! Networks on a real kernel with real nft and dnsmasq. Needs root; a missing tool is an error.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use rhyzome_agent::drivers::network::NetworkDriver;
use rhyzome_agent::host::netns;
use rhyzome_agent::names;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};
use support::frames::{self, BROADCAST};
use support::guest::Guest;
use support::{PATIENCE, dnsmasq_pid, eventually, network, on_a_node, port, run};

#[test]
fn two_networks_may_use_the_same_addresses() {
    on_a_node(async |node| {
        let (one, other) = (network(1), network(1));
        for network in [&one, &other] {
            let applied = node.driver.apply(network).await.unwrap();
            assert!(applied.rendered["dhcp-hosts"].contains("10.0.0.11,web-1"), "{:?}", applied.rendered);
            let mut guest = Guest::new(network, &network.ports[0]);
            let lease = guest.lease();
            assert_eq!(lease.address, network.ports[0].address);
            assert_eq!(lease.address_option(3), Some(network.gateway));
            assert_eq!(lease.address_option(6), Some(network.gateway));
            assert_eq!(lease.option(12), Some(&b"web-1"[..]));
            // dnsmasq gives no lease for less than two minutes, but clients renew as if it were one.
            assert_eq!(lease.option(51), Some(&120u32.to_be_bytes()[..]));
            assert_eq!(lease.option(58), Some(&30u32.to_be_bytes()[..]), "renews at half of the lease time");
        }
        let found: Vec<String> = node.driver.observe().await.unwrap().into_iter().map(|it| it.id).collect();
        assert_eq!(found.len(), 2);
        assert!(found.contains(&one.id) && found.contains(&other.id));
    });
}

#[test]
fn false_frames_do_not_pass() {
    on_a_node(async |node| {
        let network = network(2);
        node.driver.apply(&network).await.unwrap();
        let mut bad = Guest::new(&network, &network.ports[0]);
        let mut good = Guest::new(&network, &network.ports[1]);
        // Both cables are in before anything is judged.
        bad.gateway_mac();
        good.gateway_mac();
        let (own, victim) = ((bad.mac, bad.address), (good.mac, good.address));
        let foreign = frames::mac("52:54:00:ff:ff:ff");
        let stranger = Ipv4Addr::new(10, 0, 0, 99);
        let gateway = network.gateway;
        let link = (own.0, victim.0);

        let from_foreign = frames::udp((foreign, victim.0), (own.1, 1), (victim.1, 1), b"x");
        bad.assert_only_honest(&mut good, "a foreign MAC", &[from_foreign]);
        let from_stranger = frames::udp(link, (stranger, 1), (victim.1, 1), b"x");
        let from_gateway = frames::udp(link, (gateway, 1), (victim.1, 1), b"x");
        let from_nobody = frames::udp(link, (Ipv4Addr::UNSPECIFIED, 1), (victim.1, 1), b"x");
        bad.assert_only_honest(&mut good, "foreign addresses", &[from_stranger, from_gateway, from_nobody]);
        let claims = [
            frames::arp(own.0, 2, (own.0, gateway), victim),
            frames::arp(own.0, 1, (own.0, gateway), ([0; 6], victim.1)),
            frames::arp(own.0, 2, (foreign, own.1), victim),
            frames::arp(own.0, 2, victim, victim),
        ];
        bad.assert_only_honest(&mut good, "false ARP", &claims);
        bad.assert_only_honest(&mut good, "a DHCP server", &[frames::dhcp_offer(own, victim.0, stranger)]);
        let mut advertisement = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
        advertisement.extend_from_slice(&[0xfe; 32]);
        advertisement.extend_from_slice(&[134, 0, 0, 0, 0, 0, 0, 0]);
        let others = [
            frames::ethernet(BROADCAST, own.0, 0x86dd, &advertisement),
            frames::ethernet(BROADCAST, own.0, 0x8100, &[0, 5, 8, 0, 0x45]),
            frames::ethernet(BROADCAST, own.0, 0x88b5, b"anything"),
        ];
        bad.assert_only_honest(&mut good, "IPv6, VLAN, others", &others);

        // Honest ARP, and the probe that a guest sends before it takes its address, do pass.
        bad.send(&frames::arp(own.0, 1, (own.0, Ipv4Addr::UNSPECIFIED), ([0; 6], own.1)));
        bad.send(&frames::arp(own.0, 1, own, ([0; 6], victim.1)));
        for sender in [Ipv4Addr::UNSPECIFIED, own.1] {
            good.wait("honest ARP", |frame| {
                (frame[12..14] == [8, 6] && frame[28..32] == sender.octets()).then_some(())
            });
        }
        // Nobody gets, or gives back, the address of another by naming the other's MAC.
        bad.send(&frames::dhcp_ask(own.0, victim.0, 1, &[]));
        assert_eq!(bad.lease().address, own.1);
        assert_eq!(good.lease().address, victim.1);
    });
}

#[test]
fn guests_reach_the_outside_but_not_the_node() {
    on_a_node(async |node| {
        let network = network(2);
        let outside = format!("rzt-{}", &network.id[network.id.len() - 8..]);
        netns::create(&outside).unwrap();
        run(&["ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan1", "netns", &outside]);
        run(&["ip", "addr", "add", "192.0.2.2/24", "dev", "wan0"]);
        run(&["ip", "link", "set", "wan0", "up"]);
        run(&["ip", "-n", &outside, "addr", "add", "192.0.2.1/24", "dev", "wan1"]);
        run(&["ip", "-n", &outside, "link", "set", "wan1", "up"]);
        node.driver.apply(&network).await.unwrap();
        let mut guest = Guest::new(&network, &network.ports[0]);
        let gateway = guest.gateway_mac();

        let server = netns::run_in(&outside, || UdpSocket::bind("192.0.2.1:7")).unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        guest.say(gateway, (Ipv4Addr::new(192, 0, 2, 1), 7), "out");
        let mut buffer = [0; 64];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"out");
        assert_eq!(from.ip(), Ipv4Addr::new(192, 0, 2, 2), "with the node's address");
        server.send_to(b"back", from).unwrap();
        let address = guest.address;
        guest.wait("the answer from outside", |frame| {
            frames::read_udp(frame).filter(|(_, to, text)| to.0 == address && *text == b"back").map(drop)
        });

        // The node itself, by each of its addresses, and what else the namespace might listen on.
        let namespace = names::namespace(&network.id);
        let uplink = run(&["ip", "-j", "-4", "addr", "show", "dev", &namespace]);
        let uplink: serde_json::Value = serde_json::from_str(&uplink).unwrap();
        let uplink: Ipv4Addr = uplink[0]["addr_info"][0]["local"].as_str().unwrap().parse().unwrap();
        let on_node = UdpSocket::bind("0.0.0.0:7").unwrap();
        let in_namespace = netns::run_in(&namespace, || UdpSocket::bind("0.0.0.0:7")).unwrap();
        for forbidden in [Ipv4Addr::new(192, 0, 2, 2), uplink, network.gateway] {
            guest.say(gateway, (forbidden, 7), "in");
        }
        guest.say(gateway, (Ipv4Addr::new(192, 0, 2, 1), 7), "last");
        let (length, _) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"last");
        for socket in [&on_node, &in_namespace] {
            socket.set_nonblocking(true).unwrap();
            assert!(socket.recv_from(&mut buffer).is_err(), "a guest reached a service of the node");
        }
        // What a guest may ask: is the gateway there, and who is web-2?
        guest.send(&frames::ping((guest.mac, gateway), guest.address, network.gateway));
        guest.wait("the gateway's echo", |frame| (frame[12..14] == [8, 0] && frame[23] == 1).then_some(()));
        let question = frames::dns_question("web-2.lan.example");
        let asked =
            frames::udp((guest.mac, gateway), (guest.address, 4053), (network.gateway, 53), &question);
        guest.send(&asked);
        guest.wait("the other guest's name", |frame| {
            let (_, to, answer) = frames::read_udp(frame)?;
            (to.1 == 4053).then(|| assert!(answer.ends_with(&[10, 0, 0, 12]), "{answer:02x?}"))
        });
        netns::delete(&outside).unwrap();
    });
}

#[test]
fn a_network_without_a_way_out_has_none() {
    on_a_node(async |node| {
        let mut network = network(1);
        network.nat = false;
        node.driver.apply(&network).await.unwrap();
        let namespace = names::namespace(&network.id);
        let has_uplink = || run(&["ip", "-o", "link"]).contains(&namespace);
        assert!(!has_uplink());
        assert_eq!(Guest::new(&network, &network.ports[0]).lease().address_option(3), None);
        network.nat = true;
        node.driver.apply(&network).await.unwrap();
        assert!(has_uplink());
        network.nat = false;
        node.driver.apply(&network).await.unwrap();
        assert!(!has_uplink());
    });
}

#[test]
fn removing_leaves_nothing() {
    on_a_node(async |node| {
        let before = node.traces();
        let (one, other) = (network(2), network(1));
        node.driver.apply(&one).await.unwrap();
        let with_one = node.traces();
        node.driver.apply(&other).await.unwrap();
        let mut guest = Guest::new(&other, &other.ports[0]);
        guest.lease();
        drop(guest);
        node.driver.remove(&other.id).await.unwrap();
        assert_eq!(node.traces(), with_one, "the other one is untouched");
        assert_eq!(Guest::new(&one, &one.ports[0]).lease().address, one.ports[0].address);
        node.driver.remove(&one.id).await.unwrap();
        node.driver.remove(&one.id).await.unwrap();
        assert_eq!(node.traces(), before);
        assert_eq!(node.driver.observe().await.unwrap(), []);
        assert!(!netns::exists(&names::namespace(&one.id)).unwrap());
    });
}

#[test]
fn what_was_done_by_hand_is_repaired() {
    on_a_node(async |node| {
        let network = network(2);
        let namespace = names::namespace(&network.id);
        let tap = &network.ports[0].tap;
        let gone_by_hand: [&dyn Fn(); 9] = [
            &|| (),
            &|| drop(run(&["ip", "netns", "del", &namespace])),
            &|| drop(run(&["ip", "-n", &namespace, "link", "del", tap])),
            &|| drop(run(&["ip", "-n", &namespace, "link", "del", "br0"])),
            &|| drop(run(&["ip", "-n", &namespace, "link", "set", tap, "nomaster"])),
            &|| drop(run(&["ip", "-n", &namespace, "link", "set", "up0", "down"])),
            &|| drop(run(&["ip", "link", "del", &namespace])),
            &|| drop(run(&["ip", "netns", "exec", &namespace, "nft", "flush", "ruleset"])),
            &|| {
                run(&["nft", "flush", "ruleset"]);
                let pid = dnsmasq_pid(node.state.path(), &network.id);
                run(&["kill", "-9", &pid.to_string()]);
                eventually("dnsmasq is gone", || {
                    rhyzome_agent::host::process::ProcessId::of(pid as u32).is_none()
                });
            },
        ];
        for (number, sabotage) in gone_by_hand.iter().enumerate() {
            sabotage();
            println!("sabotage {number}");
            node.driver.apply(&network).await.unwrap();
            let mut one = Guest::new(&network, &network.ports[0]);
            let mut other = Guest::new(&network, &network.ports[1]);
            assert_eq!(one.lease().address, network.ports[0].address, "after {number}");
            one.gateway_mac();
            other.gateway_mac();
            let false_claim = frames::arp(one.mac, 2, (one.mac, network.gateway), (other.mac, other.address));
            one.assert_only_honest(&mut other, "repaired", &[false_claim]);
            let route = run(&["ip", "-n", &namespace, "route", "show", "default"]);
            assert!(route.contains("via 100."), "after {number}: {route}");
            assert!(run(&["nft", "list", "ruleset"]).contains("masquerade"), "after {number}");
        }
    });
}

#[test]
fn ports_come_and_go_and_addresses_change_hands() {
    on_a_node(async |node| {
        let mut network = network(1);
        node.driver.apply(&network).await.unwrap();
        let pid = dnsmasq_pid(node.state.path(), &network.id);
        assert_eq!(Guest::new(&network, &network.ports[0]).lease().address, network.ports[0].address);
        network.ports.push(port(&network.id, 2));
        node.driver.apply(&network).await.unwrap();
        assert_eq!(Guest::new(&network, &network.ports[1]).lease().address, network.ports[1].address);
        assert_eq!(dnsmasq_pid(node.state.path(), &network.id), pid, "a new port is no restart");

        // The first guest goes, and a third one gets its address while the lease still runs.
        let address = network.ports.remove(0).address;
        let mut third = port(&network.id, 3);
        third.address = address;
        network.ports.push(third);
        node.driver.apply(&network).await.unwrap();
        let namespace = names::namespace(&network.id);
        assert!(netns::open_tap(&namespace, &port(&network.id, 1).tap).is_err());
        assert_eq!(Guest::new(&network, &network.ports[1]).lease().address, address);
    });
}

#[test]
fn what_serves_guests_outlives_the_agent_and_is_found_again() {
    on_a_node(async |node| {
        let network = network(1);
        let first = NetworkDriver::new(node.state.path());
        first.apply(&network).await.unwrap();
        drop(first);
        let pid = dnsmasq_pid(node.state.path(), &network.id);
        let mut guest = Guest::new(&network, &network.ports[0]);
        assert_eq!(guest.lease().address, network.ports[0].address);
        // A session of its own: what ends the agent's terminal or group does not end it.
        let process = nix::unistd::Pid::from_raw(pid);
        assert_ne!(nix::unistd::getsid(Some(process)).unwrap(), nix::unistd::getsid(None).unwrap());
        NetworkDriver::new(node.state.path()).apply(&network).await.unwrap();
        assert_eq!(dnsmasq_pid(node.state.path(), &network.id), pid);
        assert_eq!(guest.lease().address, network.ports[0].address);

        // The operator's own additions count, and stay.
        let folder = names::network_folder(node.state.path(), &network.id);
        let addition = folder.join("drop-in/own.conf");
        std::fs::write(&addition, "host-record=extra.lan.example,10.0.0.77\n").unwrap();
        node.driver.apply(&network).await.unwrap();
        assert_ne!(dnsmasq_pid(node.state.path(), &network.id), pid, "read at its start only");
        assert!(addition.exists());
    });
}

#[test]
fn applying_again_changes_nothing_and_is_quick() {
    on_a_node(async |node| {
        let mut figures: [Vec<Duration>; 3] = Default::default();
        for _ in 0..5 {
            let mut network = network(1);
            let started = Instant::now();
            node.driver.apply(&network).await.unwrap();
            figures[0].push(started.elapsed());
            for number in 2..5 {
                network.ports.push(port(&network.id, number));
                let started = Instant::now();
                node.driver.apply(&network).await.unwrap();
                figures[1].push(started.elapsed());
            }
            let folder = names::network_folder(node.state.path(), &network.id);
            // dnsmasq writes its leases when it likes; everything else is ours.
            let place = folder.display().to_string();
            let look =
                || run(&["find", &place, "-type", "f", "!", "-name", "leases*", "-printf", "%p %T+ %s\n"]);
            let before = look();
            let started = Instant::now();
            node.driver.apply(&network).await.unwrap();
            figures[2].push(started.elapsed());
            assert_eq!(look(), before);
            node.driver.remove(&network.id).await.unwrap();
        }
        for (what, mut figures) in ["a new network", "a new port", "no change"].iter().zip(figures) {
            figures.sort();
            println!("{what}: median {:?}, all {figures:?}", figures[figures.len() / 2]);
        }
    });
}
