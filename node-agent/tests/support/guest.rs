//! A guest without a machine: it reads and writes frames where QEMU would.

use super::PATIENCE;
use super::frames::{self, Lease, Mac};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rhyzome_agent::drivers::network::{DesiredNetwork, Port};
use rhyzome_agent::host::netns;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The virtio header before each frame: nothing offloaded.
const HEADER: usize = 10;

pub struct Guest {
    tap: File,
    pub mac: Mac,
    pub address: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl Guest {
    pub fn new(network: &DesiredNetwork, port: &Port) -> Self {
        let namespace = rhyzome_agent::names::namespace(&network.id);
        let tap = File::from(netns::open_tap(&namespace, &port.tap).unwrap());
        Self { tap, mac: frames::mac(&port.mac), address: port.address, gateway: network.gateway }
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.tap.write_all(&[&[0; HEADER], frame].concat()).unwrap();
    }

    /// The first frame that `wanted` knows; all before it are gone.
    #[track_caller]
    pub fn wait<T>(&mut self, what: &str, wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        self.wait_for(PATIENCE, wanted).unwrap_or_else(|| panic!("no frame within {PATIENCE:?}: {what}"))
    }

    /// Sends until the answer comes: the kernel opens a bridge's port some moments after its cable is in, so first
    /// frames may be lost, as they may on any wire.
    #[track_caller]
    pub fn ask<T>(&mut self, what: &str, frame: &[u8], mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.send(frame);
            if let Some(found) = self.wait_for(Duration::from_millis(300), &mut wanted) {
                return found;
            }
        }
        panic!("no answer within {PATIENCE:?}: {what}");
    }

    fn wait_for<T>(&mut self, time: Duration, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let mut ready = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::try_from(left).unwrap()).unwrap() == 0 {
                continue;
            }
            let mut buffer = [0; 2048];
            let length = self.tap.read(&mut buffer).unwrap();
            if let Some(found) = wanted(&buffer[HEADER..length]) {
                return Some(found);
            }
        }
    }

    /// Asks for an address as a guest's DHCP client would, and answers what it was given.
    #[track_caller]
    pub fn lease(&mut self) -> Lease {
        let mac = self.mac;
        let answer = move |kind: u8| {
            move |frame: &[u8]| Lease::read(frame).filter(|it| it.hardware == mac && it.kind == kind)
        };
        let offer = self.ask("a DHCP offer", &frames::dhcp_ask(mac, mac, 1, &[]), answer(2));
        let server = offer.address_option(54).unwrap();
        let request = frames::dhcp_ask(mac, mac, 3, &[(50, offer.address), (54, server)]);
        self.ask("a DHCP acknowledgement", &request, answer(5))
    }

    /// Learns the gateway's MAC, and answers the gateway's own question for ours on the way.
    #[track_caller]
    pub fn gateway_mac(&mut self) -> Mac {
        let (mac, address, gateway) = (self.mac, self.address, self.gateway);
        let question = frames::arp(mac, 1, (mac, address), ([0; 6], gateway));
        let found = self.ask("the gateway's ARP answer", &question, |frame| {
            let answer = frame[12..14] == [8, 6] && frame[21] == 2 && frame[28..32] == gateway.octets();
            answer.then(|| frame[22..28].try_into().unwrap())
        });
        self.send(&frames::arp(mac, 2, (mac, address), (found, gateway)));
        found
    }

    /// A datagram with this text, to another guest or through the gateway.
    pub fn say(&mut self, next: Mac, to: (Ipv4Addr, u16), text: &str) {
        let frame = frames::udp((self.mac, next), (self.address, 4000), to, text.as_bytes());
        self.send(&frame);
    }

    /// Sends `frames` and then something honest, and asserts that `other` gets only the honest thing: frames of one port
    /// do not overtake each other, so nothing has to be waited for in vain.
    #[track_caller]
    pub fn assert_only_honest(&mut self, other: &mut Guest, what: &str, frames: &[Vec<u8>]) {
        for frame in frames {
            self.send(frame);
        }
        self.say(other.mac, (other.address, 9), what);
        other.wait(what, |frame| {
            assert!(!frames.iter().any(|bad| *bad == frame), "{what}: got through: {frame:02x?}");
            frames::read_udp(frame).filter(|(_, _, text)| *text == what.as_bytes()).map(drop)
        });
    }
}
