//! Ethernet frames by hand: what a guest may send, and what it must not.

use std::net::Ipv4Addr;

pub type Mac = [u8; 6];
pub type End = (Ipv4Addr, u16);
pub const BROADCAST: Mac = [0xff; 6];

pub fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An ARP message; `operation` 1 asks, 2 answers.
pub fn arp(frame_from: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend_from_slice(&operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        body.extend_from_slice(&mac);
        body.extend_from_slice(&address.octets());
    }
    let to = if operation == 1 { BROADCAST } else { target.0 };
    ethernet(to, frame_from, 0x0806, &body)
}

/// UDP in IPv4.
pub fn udp(link: (Mac, Mac), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&from.1.to_be_bytes());
    datagram.extend_from_slice(&to.1.to_be_bytes());
    datagram.extend_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    // No checksum: allowed in IPv4.
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    ethernet(link.1, link.0, 0x0800, &ipv4(17, from.0, to.0, &datagram))
}

/// An echo request.
pub fn ping(link: (Mac, Mac), from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ethernet(link.1, link.0, 0x0800, &ipv4(1, from, to, &body))
}

fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    header.extend_from_slice(&from.octets());
    header.extend_from_slice(&to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A datagram's source, destination and payload, if the frame is one.
pub fn read_udp(frame: &[u8]) -> Option<(End, End, &[u8])> {
    if frame.len() < 42 || frame[12..14] != [8, 0] || frame[23] != 17 {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let end = (34 + usize::from(number(38))).min(frame.len());
    Some(((address(26), number(34)), (address(30), number(36)), &frame[42..end]))
}

/// A DHCP message of a client; `kind` 1 discovers, 3 requests.
pub fn dhcp_ask(frame_from: Mac, hardware: Mac, kind: u8, options: &[(u8, Ipv4Addr)]) -> Vec<u8> {
    let mut message = bootp(1, hardware, Ipv4Addr::UNSPECIFIED);
    message.extend_from_slice(&[53, 1, kind]);
    for (option, address) in options {
        message.extend_from_slice(&[*option, 4]);
        message.extend_from_slice(&address.octets());
    }
    message.push(255);
    let any = Ipv4Addr::UNSPECIFIED;
    udp((frame_from, BROADCAST), (any, 68), (Ipv4Addr::BROADCAST, 67), &message)
}

/// What a false DHCP server would say.
pub fn dhcp_offer(from: (Mac, Ipv4Addr), to: Mac, offered: Ipv4Addr) -> Vec<u8> {
    let mut message = bootp(2, to, offered);
    message.extend_from_slice(&[53, 1, 2, 54, 4]);
    message.extend_from_slice(&from.1.octets());
    message.push(255);
    udp((from.0, BROADCAST), (from.1, 67), (Ipv4Addr::BROADCAST, 68), &message)
}

fn bootp(operation: u8, hardware: Mac, yours: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[operation, 1, 6, 0]);
    message[4..8].copy_from_slice(b"rhyz");
    // Answers by broadcast: nobody here answers ARP.
    message[10] = 0x80;
    message[16..20].copy_from_slice(&yours.octets());
    message[28..34].copy_from_slice(&hardware);
    message.extend_from_slice(&[99, 130, 83, 99]);
    message
}

/// What a server's DHCP message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub kind: u8,
    pub address: Ipv4Addr,
    pub hardware: Mac,
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Lease {
    pub fn read(frame: &[u8]) -> Option<Self> {
        let ((_, 67), (_, 68), message) = read_udp(frame)? else { return None };
        let mut options = Vec::new();
        let mut rest = message.get(240..)?;
        while let [option, length, tail @ ..] = rest
            && *option != 255
        {
            options.push((*option, tail[..usize::from(*length)].to_vec()));
            rest = &tail[usize::from(*length)..];
        }
        let kind = options.iter().find(|(option, _)| *option == 53)?.1[0];
        let address = Ipv4Addr::new(message[16], message[17], message[18], message[19]);
        Some(Self { kind, address, hardware: message[28..34].try_into().unwrap(), options })
    }

    pub fn option(&self, wanted: u8) -> Option<&[u8]> {
        self.options.iter().find(|(option, _)| *option == wanted).map(|(_, value)| value.as_slice())
    }

    pub fn address_option(&self, wanted: u8) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.option(wanted)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    }
}

/// A DNS question for the IPv4 address of `name`.
pub fn dns_question(name: &str) -> Vec<u8> {
    let mut message = vec![0x4d, 0x5a, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}
