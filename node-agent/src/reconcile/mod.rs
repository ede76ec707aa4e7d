//! What to do next, from what was ordered and what is there: pure, so that every case is a test of milliseconds.
//!
//! Each object gets one decision. Objects wait for what they need by seeing it held, never by calling it, so the
//! order image, disk, network, instance (and its reverse for removal) follows from the world alone, and what
//! does not depend on one another goes side by side.

mod instance;
mod network;
mod plain;
mod storage;
#[cfg(test)]
mod tests;

pub use instance::{is_stopping, pending};
pub use network::effective;
pub use storage::used_by;

use crate::drivers::disk::{Base, ObservedDisk};
use crate::drivers::image::ObservedImage;
use crate::drivers::instance::{BootRecord, ObservedInstance};
use crate::drivers::network::DesiredNetwork;
use crate::drivers::snapshot::ObservedSnapshot;
use crate::lease::Standing;
use crate::plain::{ObservedPlain, Ordered};
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{DiskOrder, ImageOrder, Order, SnapshotOrder};
use std::collections::{BTreeMap, BTreeSet};

/// Orders of a node, by object.
pub type Orders = BTreeMap<String, Order>;

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Images, by digest.
    pub images: BTreeMap<String, ObservedImage>,
    /// Disks, by object.
    pub disks: BTreeMap<String, ObservedDisk>,
    /// Snapshots, by object.
    pub snapshots: BTreeMap<String, ObservedSnapshot>,
    /// Disks that are being copied while no guest has them open: none can open them now.
    pub copied: BTreeSet<String>,
    /// Networks that the node holds in some state, by object.
    pub networks: BTreeSet<String>,
    /// Networks that this agent has brought into exactly this state.
    pub in_force: BTreeMap<String, DesiredNetwork>,
    /// Instances, by object.
    pub instances: BTreeMap<String, ObservedInstance>,
    /// What is here of each plain kind that has a driver, by object.
    pub plain: BTreeMap<&'static str, BTreeMap<String, ObservedPlain>>,
    /// When each guest's power button was pressed last, in milliseconds since 1970.
    pub pressed_ms: BTreeMap<String, u64>,
    /// Disks that may be made anew although a guest has had them: an operator said so.
    pub approved: BTreeSet<String>,
    /// Kinds that this node cannot hold, and the line that says which tool is missing.
    pub missing: BTreeMap<Kind, String>,
    /// Identifies this boot of the node.
    pub host_boot_id: String,
    /// "kvm", "tcg", or empty while it is being found out.
    pub accelerator: String,
    /// What the node's lease allows.
    pub lease: Standing,
}

/// Kinds whose drivers know of each other's things by what is decided here; all others are plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Bytes that disks start as.
    Image,
    /// A network namespace.
    Network,
    /// A file.
    Disk,
    /// A copy of a disk.
    Snapshot,
    /// A guest.
    Instance,
}

impl Kind {
    /// The kind of an order; None for a plain one and for one that this agent does not know.
    pub fn of(order: &Order) -> Option<Self> {
        match order.body.as_ref().and_then(|body| body.body.as_ref()) {
            Some(Body::Image(_)) => Some(Kind::Image),
            Some(Body::Network(_)) => Some(Kind::Network),
            Some(Body::Disk(_)) => Some(Kind::Disk),
            Some(Body::Snapshot(_)) => Some(Kind::Snapshot),
            Some(Body::Instance(_)) => Some(Kind::Instance),
            Some(Body::Plain(_)) => None,
            None => match order.kind.as_str() {
                "image" => Some(Kind::Image),
                "network" => Some(Kind::Network),
                "disk" => Some(Kind::Disk),
                "snapshot" => Some(Kind::Snapshot),
                "instance" => Some(Kind::Instance),
                _ => None,
            },
        }
    }
}

/// One thing to do for one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Fetch, verify and inspect.
    FetchImage(ImageOrder),
    /// Remove the file with this digest, and what was fetched of it.
    RemoveImage(String),
    /// Make or grow.
    ApplyDisk(DiskOrder, Option<Base>),
    /// Grow through the QEMU of the instance that has it open.
    GrowOpenDisk {
        /// Who has it open.
        instance_id: String,
        /// What the disk is to be.
        order: DiskOrder,
    },
    /// Remove the file.
    RemoveDisk(DiskOrder),
    /// Copy a disk as it is now, or go on with that.
    TakeSnapshot {
        /// Of what.
        order: SnapshotOrder,
        /// The instance that has the disk open.
        open_by: Option<String>,
    },
    /// Give up taking it, and remove its file.
    RemoveSnapshot {
        /// The instance that has its disk open, and so may be at work on it.
        open_by: Option<String>,
    },
    /// Bring into this state.
    ApplyNetwork(DesiredNetwork),
    /// Leave nothing of it.
    RemoveNetwork,
    /// Run QEMU.
    Start {
        /// As what.
        boot: Box<BootRecord>,
        /// With the guest's clock stopped.
        paused: bool,
    },
    /// From now on the guest that runs is stopped when the node holds no lease, or (false) no more.
    Guard(bool),
    /// Ask the guest to stop.
    PressPower,
    /// End QEMU at once.
    Kill,
    /// Stop the guest's clock.
    Pause,
    /// Let it run.
    Resume,
    /// End QEMU at once and remove its folder.
    RemoveInstance,
    /// Write an instance's files again as they were when it was started; the guest goes on.
    Rewrite,
    /// Make one of a plain kind as this says.
    ApplyPlain(&'static str, Ordered),
    /// Leave nothing of one of a plain kind.
    RemovePlain(&'static str),
    /// Nothing is left: forget the order and report GONE.
    Forget,
}

/// What becomes of one object now.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It is as ordered.
    Held,
    /// Do this.
    Do(Action),
    /// Something else comes first.
    Wait {
        /// What, for people.
        reason: String,
        /// Look again at this time at the latest, in milliseconds since 1970.
        until_ms: Option<u64>,
    },
    /// The order cannot be carried out.
    Refuse {
        /// Why.
        reason: String,
        /// False if something done to the node may help.
        permanent: bool,
    },
}

impl Decision {
    fn wait(reason: impl Into<String>) -> Self {
        Decision::Wait { reason: reason.into(), until_ms: None }
    }

    fn refuse(reason: impl Into<String>) -> Self {
        Decision::Refuse { reason: reason.into(), permanent: true }
    }
}

/// All that a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What was ordered.
    pub orders: &'a Orders,
    /// What is there.
    pub world: &'a World,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// Decides for every object that was ordered.
pub fn plan(view: View<'_>) -> BTreeMap<String, Decision> {
    view.orders.iter().map(|(id, order)| (id.clone(), decide(view, order))).collect()
}

/// Decides for these of them. A plain object's decision depends on it alone and on what it needs.
pub fn plan_of(view: View<'_>, ids: &BTreeSet<String>) -> BTreeMap<String, Decision> {
    let ordered = ids.iter().filter_map(|id| view.orders.get_key_value(id));
    ordered.map(|(id, order)| (id.clone(), decide(view, order))).collect()
}

fn decide(view: View<'_>, order: &Order) -> Decision {
    if let Some((kind, here)) = view.world.plain.get_key_value(order.kind.as_str()) {
        return plain::decide(view, order, kind, here);
    }
    let Some(kind) = Kind::of(order) else {
        return if order.remove {
            // Nothing was ever made for it.
            Decision::Do(Action::Forget)
        } else {
            Decision::refuse(format!(
                "unsupported: this agent does not know the kind {:?}; upgrade it",
                order.kind
            ))
        };
    };
    if let Some(line) = view.world.missing.get(&kind).filter(|_| !order.remove) {
        return Decision::Refuse { reason: line.clone(), permanent: false };
    }
    let body = order.body.as_ref().and_then(|body| body.body.as_ref());
    match (kind, body) {
        (Kind::Image, Some(Body::Image(image))) => storage::image(view, order, image),
        (Kind::Network, _) if order.remove => network::removal(view, &order.object_id),
        (Kind::Network, Some(Body::Network(network))) => network::decide(view, &order.object_id, network),
        (Kind::Disk, Some(Body::Disk(disk))) => storage::disk(view, order, disk),
        (Kind::Disk, None) if order.remove => storage::disk(view, order, &DiskOrder::default()),
        (Kind::Snapshot, body) if order.remove => storage::snapshot_removal(view, order, body),
        (Kind::Snapshot, Some(Body::Snapshot(snapshot))) => storage::snapshot(view, order, snapshot),
        (Kind::Instance, _) if order.remove => instance::removal(view, &order.object_id),
        (Kind::Instance, Some(Body::Instance(instance))) => instance::decide(view, order, instance),
        // Removal of an image whose digest nobody said: it was never fetched for this object.
        _ if order.remove => Decision::Do(Action::Forget),
        _ => no_body(order),
    }
}

/// What a newer server says in words that this agent does not know arrives as nothing.
fn no_body(order: &Order) -> Decision {
    let kind = &order.kind;
    Decision::refuse(format!(
        "unsupported: this agent does not know what it is to hold of this {kind}; upgrade it"
    ))
}

/// Why an object that needs `id` cannot go on; None if `id` is held.
fn obstacle(view: View<'_>, id: &str) -> Option<String> {
    let Some(order) = view.orders.get(id) else {
        return Some(format!("waits for {id}, which this node was not told to hold yet"));
    };
    if order.remove {
        return Some(format!("waits for {id}, which is being removed"));
    }
    let is_held = match order.body.as_ref().and_then(|body| body.body.as_ref()) {
        Some(Body::Image(image)) => view.world.images.get(&image.sha256).is_some_and(|image| image.is_whole),
        Some(Body::Disk(_)) => view.world.disks.contains_key(id),
        Some(Body::Network(network)) => network::is_in_force(view, id, network),
        Some(Body::Plain(body)) => plain::is_in_force(view, order, body),
        // What is not known here cannot be waited for: its own refusal says so.
        _ => true,
    };
    (!is_held).then(|| format!("waits for {id}"))
}
