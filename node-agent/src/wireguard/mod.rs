//! WireGuard: devices that end on this node or in one of its networks, and the peers that they speak to. Two kinds of
//! order make devices, two make peers; they share this room, because a peer is a line in a device.
//!
//! - `plan`: what a device should hold, what it holds, the message between: pure. `keys`, `uapi`: words.
//! - `engine`: the kernel (`kernel`) or a process of its own (`process`, which runs `device`, which cuts large packets by
//!   `offload`), by trying.
//! - `links`: addresses and routes. `rules`: what peers may reach on the node itself.
//! - `room`: what is known of devices. `servers`, `peers`: the drivers.
//! - `mesh`: devices among nodes, by the same engines.
//!
//! One more peer is one message to its device, and touches no other.

pub mod device;
pub mod engine;
pub mod kernel;
pub mod keys;
mod links;
pub mod mesh;
mod offload;
mod peers;
pub mod plan;
pub mod process;
pub mod room;
mod rules;
mod servers;
mod transports;
pub mod uapi;

use crate::env::Env;
use crate::plain::Plains;
use peers::Peers;
use room::Room;
use servers::Servers;
use std::path::Path;
use std::sync::Arc;

/// The kinds whose objects are devices, then those whose objects are peers, then the one whose objects are one or the
/// other.
pub const KINDS: &[&str] = &["vpn-pool", "wireguard-server", "vpn-network", "wireguard-peer", mesh::KIND];

/// Their drivers, on the node whose agent keeps its things in this folder.
pub fn drivers(state: &Path, env: &Env, wanted: engine::Wanted) -> Plains {
    of_room(&Arc::new(Room::new(state, env.clone(), wanted)))
}

/// Their drivers in this room. Devices come first: a look at them is what peers are seen by.
pub fn of_room(room: &Arc<Room>) -> Plains {
    vec![
        Arc::new(Servers { kind: KINDS[0], room: room.clone() }),
        Arc::new(Servers { kind: KINDS[1], room: room.clone() }),
        Arc::new(Peers { kind: KINDS[2], room: room.clone() }),
        Arc::new(Peers { kind: KINDS[3], room: room.clone() }),
        Arc::new(mesh::Members::new(room.clone())),
    ]
}
