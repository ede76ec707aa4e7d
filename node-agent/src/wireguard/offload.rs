//! What the kernel leaves to a device that takes large packets: it hands over a stream's data in pieces of up to 64 KiB, each
//! with a header that says how to cut it into packets, and checksums that are not complete yet. Pure.
//!
//! One piece is one system call, and one way through the kernel, in the place of forty.

/// Of `struct virtio_net_hdr`, before each packet.
pub const HEADER: usize = 10;
/// As much as the kernel hands over at once.
pub const LARGEST: usize = HEADER + 65_535;

/// Before a packet that is whole as it stands.
pub const WHOLE: [u8; HEADER] = [0; HEADER];

const NEEDS_CHECKSUM: u8 = 1;
const CUT_NONE: u8 = 0;
const CUT_TCP4: u8 = 1;
const CUT_TCP6: u8 = 4;
/// A bit beside the kind: some packets of the stream carry signs of congestion.
const CUT_ECN: u8 = 0x80;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
/// Said once, by the first packet.
const CWR: u8 = 0x80;

/// Cuts what was read, header and all, into packets, and hands on each. Nothing of what makes no sense.
pub fn cut(read: &mut [u8], mut packet: impl FnMut(&[u8], &[u8])) -> Option<()> {
    let (header, whole) = read.split_at_mut_checked(HEADER)?;
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (size, start, offset) = (word(4), word(6), word(8));
    match header[1] & !CUT_ECN {
        CUT_NONE => {
            if header[0] & NEEDS_CHECKSUM != 0 {
                complete(whole, start, offset)?;
            }
            packet(whole, &[]);
        }
        CUT_TCP4 | CUT_TCP6 if size > 0 => cut_tcp(whole, start, size, packet)?,
        _ => return None,
    }
    Some(())
}

/// The kernel has put the sum of what is not in the packet where the checksum belongs.
fn complete(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let sum = checksum(sum(packet.get(start..)?, 0));
    // Of UDP zero means that there is none.
    let sum = if sum == 0 { 0xffff } else { sum };
    packet.get_mut(start + offset..start + offset + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// A guest says how small the pieces are. Of an honest system each has some hundred bytes, of what the kernel hands over 64
/// KiB at most.
const MOST_PIECES: usize = 1024;

fn cut_tcp(whole: &mut [u8], tcp: usize, size: usize, mut packet: impl FnMut(&[u8], &[u8])) -> Option<()> {
    let length = tcp + usize::from(whole.get(tcp + 12)? >> 4) * 4;
    let is_v4 = whole.first()? >> 4 == 4;
    if length < tcp + 20 || tcp < if is_v4 { 20 } else { 40 } {
        return None;
    }
    let (head, data) = whole.split_at_mut_checked(length)?;
    if data.len().div_ceil(size) > MOST_PIECES {
        return None;
    }
    let flags = head[tcp + 13];
    let first = u32::from_be_bytes(head[tcp + 4..tcp + 8].try_into().ok()?);
    let number = u16::from_be_bytes(head[4..6].try_into().ok()?);
    let count = data.chunks(size).count().max(1);
    for index in 0..count {
        let piece = data.get(index * size..).map(|rest| &rest[..rest.len().min(size)])?;
        let mut own = flags;
        if index + 1 < count {
            own &= !(FIN | PSH);
        }
        if index > 0 {
            own &= !CWR;
        }
        head[tcp + 13] = own;
        let sequence = first.wrapping_add(u32::try_from(index * size).ok()?);
        head[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
        let segment = u16::try_from(length - tcp + piece.len()).ok()?;
        let addresses = if is_v4 {
            let total = u16::try_from(length + piece.len()).ok()?;
            head[2..4].copy_from_slice(&total.to_be_bytes());
            let number = number.wrapping_add(u16::try_from(index).ok()?);
            head[4..6].copy_from_slice(&number.to_be_bytes());
            head[10..12].fill(0);
            let of_head = checksum(sum(&head[..tcp], 0));
            head[10..12].copy_from_slice(&of_head.to_be_bytes());
            12..20
        } else {
            let rest = u16::try_from(length + piece.len() - 40).ok()?;
            head[4..6].copy_from_slice(&rest.to_be_bytes());
            8..40
        };
        head[tcp + 16..tcp + 18].fill(0);
        // Addresses, protocol and length count, too.
        let before = sum(&head[addresses], 6 + u64::from(segment));
        let whole = checksum(sum(piece, sum(&head[tcp..], before)));
        head[tcp + 16..tcp + 18].copy_from_slice(&whole.to_be_bytes());
        packet(head, piece);
    }
    Some(())
}

/// The sum of the 16-bit words of these bytes and what was there before, not folded. All but the last piece of a sum are of
/// even length.
fn sum(bytes: &[u8], before: u64) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let mut all = before;
    for word in &mut words {
        all += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    all + u64::from(u32::from_be_bytes(last))
}

fn checksum(sum: u64) -> u16 {
    let mut sum = sum;
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // It is below 2^16 now.
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(bytes: &[u8]) -> u64 {
        bytes.chunks(2).map(|two| u64::from(two[0]) << 8 | two.get(1).map_or(0, |it| u64::from(*it))).sum()
    }

    fn folds_to_nothing(mut sum: u64) -> bool {
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum == 0xffff
    }

    /// A stream's data behind headers, as the kernel hands it over.
    fn large(is_v4: bool, data: usize, flags: u8) -> Vec<u8> {
        let ip = if is_v4 { 20 } else { 40 };
        let mut packet = vec![0; HEADER];
        packet[0] = NEEDS_CHECKSUM;
        packet[1] = if is_v4 { CUT_TCP4 } else { CUT_TCP6 };
        packet[4..6].copy_from_slice(&1000_u16.to_ne_bytes());
        packet[6..8].copy_from_slice(&u16::try_from(ip).unwrap().to_ne_bytes());
        packet[8..10].copy_from_slice(&16_u16.to_ne_bytes());
        let mut head = vec![0; ip + 32];
        head[0] = if is_v4 { 0x45 } else { 0x60 };
        if is_v4 {
            head[4..6].copy_from_slice(&0xffff_u16.to_be_bytes());
            head[9] = 6;
        } else {
            head[6] = 6;
        }
        for (at, byte) in head[if is_v4 { 12..20 } else { 8..40 }].iter_mut().enumerate() {
            *byte = u8::try_from(at * 7 + 1).unwrap();
        }
        head[ip + 4..ip + 8].copy_from_slice(&(u32::MAX - 500).to_be_bytes());
        head[ip + 12] = 8 << 4;
        head[ip + 13] = flags;
        packet.extend(head);
        packet.extend((0..data).map(|at| u8::try_from(at % 251).unwrap()));
        packet
    }

    #[test]
    fn a_large_packet_is_cut_into_whole_ones() {
        for is_v4 in [true, false] {
            let (ip, mut read) = (if is_v4 { 20 } else { 40 }, large(is_v4, 2501, FIN | PSH | CWR | 0x10));
            let mut all = Vec::new();
            cut(&mut read, |head, data| all.push([head, data].concat())).unwrap();
            let lengths: Vec<usize> = all.iter().map(Vec::len).collect();
            assert_eq!(lengths, [ip + 1032, ip + 1032, ip + 533]);
            let mut data = Vec::new();
            for (index, packet) in all.iter().enumerate() {
                let tcp = &packet[ip..];
                let sequence = (u32::MAX - 500).wrapping_add(u32::try_from(index * 1000).unwrap());
                assert_eq!(tcp[4..8], sequence.to_be_bytes());
                assert_eq!(tcp[13], [0x90, 0x10, FIN | PSH | 0x10][index]);
                let addresses = if is_v4 { 12..20 } else { 8..40 };
                let pseudo = words(&packet[addresses]) + 6 + tcp.len() as u64;
                assert!(folds_to_nothing(pseudo + words(tcp)), "the checksum of packet {index}");
                if is_v4 {
                    assert!(folds_to_nothing(words(&packet[..20])), "the checksum of its head");
                    assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
                    assert_eq!(
                        packet[4..6],
                        0xffff_u16.wrapping_add(u16::try_from(index).unwrap()).to_be_bytes()
                    );
                } else {
                    assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40);
                }
                data.extend_from_slice(&tcp[32..]);
            }
            assert_eq!(data, large(is_v4, 2501, 0)[HEADER + ip + 32..]);
        }
    }

    #[test]
    fn a_small_packet_passes_with_its_checksum() {
        let mut read = vec![0; HEADER + 20 + 8 + 5];
        read[HEADER] = 0x45;
        read[HEADER + 28..].copy_from_slice(b"hello");
        let untouched = read[HEADER..].to_vec();
        cut(&mut read, |head, data| assert_eq!([head, data].concat(), untouched)).unwrap();
        // UDP, whose pseudo header is summed already.
        read[0] = NEEDS_CHECKSUM;
        read[6..8].copy_from_slice(&20_u16.to_ne_bytes());
        read[8..10].copy_from_slice(&6_u16.to_ne_bytes());
        read[HEADER + 26..HEADER + 28].copy_from_slice(&0x1234_u16.to_be_bytes());
        let mut whole = Vec::new();
        cut(&mut read, |head, _| whole = head.to_vec()).unwrap();
        assert!(folds_to_nothing(words(&whole[20..]) + 0x1234));
    }

    #[test]
    fn what_makes_no_sense_is_dropped() {
        let none = |read: &mut [u8]| cut(read, |_, _| panic!("it was handed on"));
        assert_eq!(none(&mut []), None);
        assert_eq!(none(&mut large(true, 100, 0)[..HEADER + 30]), None);
        for (at, byte) in
            [(1, 3), (1, 7), (4, 0), (6, 0), (6, 0xff), (HEADER + 32, 0x10), (HEADER + 32, 0xf0)]
        {
            let mut read = large(true, 4, 0);
            if at == 4 {
                read[4..6].fill(0);
            } else {
                read[at] = byte;
            }
            assert_eq!(none(&mut read), None, "{byte:#x} at {at}");
        }
        let mut read = large(true, 4, 0);
        read.resize(60_000, 7);
        read[4..6].copy_from_slice(&1_u16.to_ne_bytes());
        assert_eq!(none(&mut read), None, "a guest asks for sixty thousand packets");
        let mut read = large(true, 0, 0);
        (read[1], read[6], read[8]) = (CUT_NONE, 0xff, 0xff);
        assert_eq!(none(&mut read), None);
    }
}
