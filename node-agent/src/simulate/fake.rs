//! What drivers would make, noted in a world that the next decision is made from. Fakes: for simulation only, and the
//! only ones that there are.

use crate::drivers::disk::ObservedDisk;
use crate::drivers::image::ObservedImage;
use crate::drivers::instance::{ObservedGuest, ObservedInstance, ObservedProcess};
use crate::drivers::snapshot::{Content, ObservedSnapshot};
use crate::drivers::{self, Deviation, DriverError};
use crate::files;
use crate::owner::{Rendered, Seen, Sight};
use crate::plain::{ObservedPlain, Ordered, Plain, Plains};
use crate::reconcile::{Action, Orders, World};
use rhyzome_proto::v1::order_body::Body;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Drivers of all plain kinds for a node that is not there: those that need only a folder, and stand-ins for what would
/// touch this machine.
pub fn plain(state: &Path) -> Plains {
    let stand_in =
        |kind: &&'static str| -> Arc<dyn Plain> { Arc::new(StandIn { kind, folder: state.join(kind) }) };
    drivers::alone(state).into_iter().chain(crate::wireguard::KINDS.iter().map(stand_in)).collect()
}

/// Keeps the bodies of orders, one file each, and does nothing with them.
struct StandIn {
    kind: &'static str,
    folder: PathBuf,
}

impl Plain for StandIn {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn all(&self) -> Result<BTreeSet<String>, DriverError> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        Ok(entries.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    fn look(&self, id: &str, ordered: Option<&Ordered>) -> Result<Option<ObservedPlain>, DriverError> {
        let Ok(here) = fs::read(self.folder.join(id)) else { return Ok(None) };
        let in_force = ordered.map(|ordered| &ordered.body).filter(|body| **body == here).cloned();
        Ok(Some(ObservedPlain { in_force, ..ObservedPlain::default() }))
    }

    fn make(&self, id: &str, ordered: &Ordered) -> Result<Vec<Deviation>, DriverError> {
        fs::create_dir_all(&self.folder)
            .and_then(|()| files::write_durable(&self.folder.join(id), &ordered.body))
            .map_err(|error| DriverError::io("keep a body", &error))?;
        Ok(Vec::new())
    }

    fn take_away(&self, id: &str) -> Result<(), DriverError> {
        files::remove_if_there(&self.folder.join(id))
            .map(drop)
            .map_err(|error| DriverError::io("forget a body", &error))
    }
}

/// True if this needs room on the disk.
pub fn writes(action: &Action) -> bool {
    matches!(
        action,
        Action::FetchImage(_)
            | Action::ApplyDisk(..)
            | Action::GrowOpenDisk { .. }
            | Action::TakeSnapshot { .. }
            | Action::ApplyNetwork(_)
            | Action::ApplyPlain(..)
            | Action::Start { .. }
    )
}

/// The kind of the object that this is done to.
pub fn kind_of(action: &Action) -> &'static str {
    match action {
        Action::FetchImage(_) | Action::RemoveImage(_) => "image",
        Action::ApplyDisk(..) | Action::GrowOpenDisk { .. } | Action::RemoveDisk(_) => "disk",
        Action::TakeSnapshot { .. } | Action::RemoveSnapshot { .. } => "snapshot",
        Action::ApplyNetwork(_) | Action::RemoveNetwork => "network",
        Action::ApplyPlain(kind, _) | Action::RemovePlain(kind) => kind,
        Action::Start { .. }
        | Action::Guard(_)
        | Action::PressPower
        | Action::Kill
        | Action::Pause
        | Action::Resume
        | Action::RemoveInstance
        | Action::Rewrite => "instance",
        Action::Forget => "",
    }
}

/// What it is called: `ApplyDisk`.
pub fn name_of(action: &Action) -> String {
    format!("{action:?}").chars().take_while(char::is_ascii_alphanumeric).collect()
}

/// Does one action on one object. `deaf`: guests do not hear the power button; `pids`: the greatest number of a process
/// so far.
pub fn act(world: &mut World, id: &str, action: Action, now_ms: u64, deaf: bool, pids: &mut u32) {
    match action {
        Action::FetchImage(order) => {
            let seen = ObservedImage { bytes_on_disk: order.size_bytes, is_whole: true };
            world.images.insert(order.sha256, seen);
        }
        Action::RemoveImage(sha256) => drop(world.images.remove(&sha256)),
        Action::ApplyDisk(order, _) | Action::GrowOpenDisk { order, .. } => {
            let seen = ObservedDisk { virtual_size_bytes: order.size_bytes, allocated_bytes: 0 };
            world.disks.insert(id.to_owned(), seen);
        }
        Action::RemoveDisk(_) => drop(world.disks.remove(id)),
        Action::TakeSnapshot { order, .. } => {
            let size = world.disks.get(&order.disk_id).map_or(0, |disk| disk.virtual_size_bytes);
            let content = Content {
                // Its id is all that there is of it.
                sha256: rhyzome_pki::sha256_hex(id.as_bytes()),
                size_bytes: id.len() as u64,
                virtual_size_bytes: size,
                taken_at_ms: now_ms,
            };
            world.snapshots.insert(id.to_owned(), ObservedSnapshot::Whole(content));
        }
        Action::RemoveSnapshot { .. } => drop(world.snapshots.remove(id)),
        Action::ApplyNetwork(network) => {
            world.networks.insert(id.to_owned());
            world.in_force.insert(id.to_owned(), network);
        }
        Action::RemoveNetwork => {
            world.networks.remove(id);
            world.in_force.remove(id);
        }
        Action::Start { boot, paused } => {
            *pids += 1;
            let process = Some(ObservedProcess { pid: *pids, paused });
            let seen = ObservedInstance { id: id.to_owned(), boot: Some(*boot), process };
            world.instances.insert(id.to_owned(), seen);
        }
        Action::Guard(guarded) => {
            if let Some(boot) = world.instances.get_mut(id).and_then(|instance| instance.boot.as_mut()) {
                boot.order.ha_restart = guarded;
            }
        }
        Action::PressPower => {
            world.pressed_ms.insert(id.to_owned(), now_ms);
            stopped(world, id, now_ms, !deaf);
        }
        Action::Kill => stopped(world, id, now_ms, true),
        Action::Pause => pause(world, id, true),
        Action::Resume => pause(world, id, false),
        Action::RemoveInstance => drop(world.instances.remove(id)),
        Action::ApplyPlain(kind, ordered) => {
            let seen = ObservedPlain { in_force: Some(ordered.body), ..ObservedPlain::default() };
            world.plain.entry(kind).or_default().insert(id.to_owned(), seen);
        }
        Action::RemovePlain(kind) => drop(world.plain.get_mut(kind).and_then(|here| here.remove(id))),
        Action::Rewrite | Action::Forget => {}
    }
}

fn stopped(world: &mut World, id: &str, now: u64, dies: bool) {
    let Some(instance) = world.instances.get_mut(id) else { return };
    if let Some(boot) = &mut instance.boot
        && boot.stop_asked_at_ms == 0
    {
        boot.stop_asked_at_ms = now;
    }
    if dies {
        instance.process = None;
    }
}

fn pause(world: &mut World, id: &str, paused: bool) {
    if let Some(process) = world.instances.get_mut(id).and_then(|instance| instance.process.as_mut()) {
        process.paused = paused;
    }
}

/// What is there after this was done.
pub fn seen(world: &World, id: &str, action: &Action) -> Seen {
    let own = id.to_owned();
    match action {
        Action::FetchImage(order) => image(world, &order.sha256),
        Action::RemoveImage(sha256) => image(world, sha256),
        Action::ApplyDisk(..) | Action::GrowOpenDisk { .. } | Action::RemoveDisk(_) => {
            Seen::Disk(own, world.disks.get(id).copied())
        }
        Action::TakeSnapshot { .. } | Action::RemoveSnapshot { .. } => snapshot(world, id),
        Action::ApplyNetwork(_) => {
            let network = world.in_force.get(id).cloned();
            Seen::Network(own, network.map(|network| (network, Rendered::new())))
        }
        Action::RemoveNetwork if world.networks.contains(id) => Seen::Network(own, None),
        Action::RemoveNetwork => Seen::NetworkGone(own),
        Action::ApplyPlain(kind, _) | Action::RemovePlain(kind) => {
            Seen::Plain(kind, own, world.plain.get(kind).and_then(|here| here.get(id)).cloned())
        }
        _ => instance(world, id),
    }
}

/// An image, as it is there.
pub fn image(world: &World, sha256: &str) -> Seen {
    Seen::Image(sha256.to_owned(), world.images.get(sha256).cloned())
}

fn snapshot(world: &World, id: &str) -> Seen {
    Seen::Snapshot(id.to_owned(), world.snapshots.get(id).cloned())
}

/// An instance, as it is there.
pub fn instance(world: &World, id: &str) -> Seen {
    Seen::Instance(id.to_owned(), world.instances.get(id).cloned(), Rendered::new())
}

/// All that is there.
pub fn sight(world: &World, orders: &Orders) -> Sight {
    let mut seen: Vec<Seen> = Vec::new();
    for (id, order) in orders {
        match order.body.as_ref().and_then(|body| body.body.as_ref()) {
            Some(Body::Image(order)) => seen.push(image(world, &order.sha256)),
            Some(Body::Disk(_)) => seen.push(Seen::Disk(id.clone(), world.disks.get(id).copied())),
            Some(Body::Snapshot(_)) => seen.push(snapshot(world, id)),
            _ => {}
        }
    }
    seen.extend(world.instances.keys().map(|id| instance(world, id)));
    let mut plain = Vec::new();
    for (kind, here) in &world.plain {
        plain.push((*kind, here.keys().cloned().collect()));
        seen.extend(here.iter().map(|(id, object)| Seen::Plain(kind, id.clone(), Some(object.clone()))));
    }
    let instances = world.instances.keys().cloned().collect();
    Sight {
        seen,
        networks: Some(world.networks.clone()),
        instances: Some(instances),
        plain,
        guests: world.instances.values().filter_map(guest).collect(),
        disk_files: Some(world.disks.keys().cloned().collect()),
        ..Sight::default()
    }
}

/// Its QEMU, as /proc would show it.
fn guest(instance: &ObservedInstance) -> Option<ObservedGuest> {
    let (process, boot) = (instance.process?, instance.boot.as_ref()?);
    Some(ObservedGuest {
        pid: process.pid,
        digest: instance.id.clone(),
        name: instance.id.clone(),
        vcpus: boot.order.vcpus,
        memory_bytes: boot.order.memory_bytes,
        disks: Vec::new(),
        started_at_ms: boot.started_at_ms,
    })
}
