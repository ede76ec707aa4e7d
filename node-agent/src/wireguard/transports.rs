//! What a userspace device reads from and writes to: the interface that it was handed, and UDP. Whoever cannot go on says
//! so.

use super::offload;
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use gotatun::udp::socket::UdpSocketFactory;
use gotatun::udp::{UdpRecv, UdpTransportFactory, UdpTransportFactoryParams};
use nix::libc;
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Where it is said why the device cannot go on.
#[derive(Debug, Clone)]
pub struct Ends(mpsc::Sender<String>);

impl Ends {
    /// With the place where it is heard: the first reason is enough.
    pub fn new() -> (Self, mpsc::Receiver<String>) {
        let (said, heard) = mpsc::channel(1);
        (Self(said), heard)
    }

    fn say(&self, what: &str, error: &io::Error) {
        let _ = self.0.try_send(format!("{what}: {error}"));
    }
}

/// Where packets go that came through the tunnel.
pub struct TunSend {
    fd: Arc<AsyncFd<File>>,
    ends: Ends,
}

impl TunSend {
    /// To this interface.
    pub fn new(fd: Arc<AsyncFd<File>>, ends: Ends) -> Self {
        Self { fd, ends }
    }
}

impl IpSend for TunSend {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let bytes = packet.into_bytes();
        let parts = [IoSlice::new(&offload::WHOLE), IoSlice::new(&bytes)];
        let written = self.fd.async_io(Interest::WRITABLE, |mut tun| tun.write_vectored(&parts).map(drop));
        match written.await {
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                self.ends.say("writing packets", &error);
                Err(error)
            }
            // One that the interface refuses (it is down, the packet is none) is lost, as packets are.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Where packets come from that go through the tunnel.
pub struct TunRecv {
    fd: Arc<AsyncFd<File>>,
    mtu: u16,
    read: Vec<u8>,
    packets: Vec<Packet<Ip>>,
    ends: Ends,
}

impl TunRecv {
    /// From this interface, no longer than this.
    pub fn new(fd: Arc<AsyncFd<File>>, mtu: u16, ends: Ends) -> Self {
        Self { fd, mtu, read: vec![0; offload::LARGEST], packets: vec![], ends }
    }

    async fn read(&mut self) -> io::Result<usize> {
        loop {
            match self.fd.async_io(Interest::READABLE, |mut tun| tun.read(&mut self.read)).await {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.ends.say("reading packets", &error);
                    return Err(error);
                }
                Ok(length) => return Ok(length),
            }
        }
    }
}

impl IpRecv for TunRecv {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        while self.packets.is_empty() {
            let length = self.read().await?;
            // What makes no sense is lost, as packets are.
            let _ = offload::cut(&mut self.read[..length], |head, data| {
                let (mut packet, length) = (pool.get(), head.len() + data.len());
                // Packets are no longer than the interface's, and buffers hold the longest.
                if let Some(room) = packet.get_mut(..length) {
                    room[..head.len()].copy_from_slice(head);
                    room[head.len()..].copy_from_slice(data);
                    packet.truncate(length);
                    self.packets.extend(packet.try_into_ip().ok());
                }
            });
        }
        Ok(self.packets.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(self.mtu)
    }
}

/// Sockets of the node.
pub struct Udp {
    sockets: UdpSocketFactory,
    ends: Ends,
}

impl Udp {
    /// Whose end is told here.
    pub fn new(ends: Ends) -> Self {
        Self { sockets: UdpSocketFactory::default(), ends }
    }
}

impl UdpTransportFactory for Udp {
    type Send = <UdpSocketFactory as UdpTransportFactory>::Send;
    type Recv = Heard<<UdpSocketFactory as UdpTransportFactory>::Recv>;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Self::Send, Self::Recv)> {
        let (send, socket) = self.sockets.bind(params).await?;
        Ok((send, Heard { socket, ends: self.ends.clone() }))
    }
}

/// A socket that is read: nobody reads on after an error.
pub struct Heard<Socket> {
    socket: Socket,
    ends: Ends,
}

impl<Socket> Heard<Socket> {
    fn note<T>(ends: &Ends, read: io::Result<T>) -> io::Result<T> {
        read.inspect_err(|error| ends.say("listening on UDP", error))
    }
}

impl<Socket: UdpRecv> UdpRecv for Heard<Socket> {
    type RecvManyBuf = Socket::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        Self::note(&self.ends, self.socket.recv_from(pool).await)
    }

    async fn recv_many_from(
        &mut self,
        buffers: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        Self::note(&self.ends, self.socket.recv_many_from(buffers, pool, packets).await)
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.socket.enable_udp_gro()
    }
}
