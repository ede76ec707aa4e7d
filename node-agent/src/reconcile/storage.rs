//! Images and disks.

use super::{Action, Decision, View, obstacle};
use crate::drivers::disk::Base;
use crate::drivers::instance::BootRecord;
use crate::drivers::snapshot::{self, ObservedSnapshot};
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{DiskOrder, ImageOrder, Order, Power, SnapshotOrder};

pub(super) fn image(view: View<'_>, order: &Order, image: &ImageOrder) -> Decision {
    let seen = view.world.images.get(&image.sha256);
    if !order.remove {
        return match seen {
            Some(seen) if seen.is_whole => Decision::Held,
            _ => Decision::Do(Action::FetchImage(image.clone())),
        };
    }
    // The bytes of a disk are what differs from its image: without the image they are nothing.
    if let Some(disk) = disks(view).find(|(_, disk)| disk.image_id == order.object_id) {
        return Decision::wait(format!("waits for {}, which stands on it", disk.0));
    }
    let wanted_by_other = view.orders.values().any(|other| {
        let same = matches!(body(other), Some(Body::Image(other)) if other.sha256 == image.sha256);
        same && other.object_id != order.object_id && !other.remove
    });
    match seen {
        Some(_) if !wanted_by_other => Decision::Do(Action::RemoveImage(image.sha256.clone())),
        _ => Decision::Do(Action::Forget),
    }
}

pub(super) fn disk(view: View<'_>, order: &Order, disk: &DiskOrder) -> Decision {
    let id = &order.object_id;
    let seen = view.world.disks.get(id);
    let user = open_by(view, id);
    if order.remove {
        return match (seen, user) {
            (_, Some(user)) => Decision::wait(format!("waits for {user}, which has it open")),
            (Some(_), None) => Decision::Do(Action::RemoveDisk(disk.clone())),
            (None, None) => Decision::Do(Action::Forget),
        };
    }
    match (seen, user) {
        (Some(seen), _) if seen.virtual_size_bytes == disk.size_bytes => return Decision::Held,
        (Some(seen), Some(user)) if seen.virtual_size_bytes < disk.size_bytes => {
            let instance_id = user.to_owned();
            return Decision::Do(Action::GrowOpenDisk { instance_id, order: disk.clone() });
        }
        _ => {}
    }
    if seen.is_none()
        && let Some(user) = used_by(view, id)
        && !view.world.approved.contains(id)
    {
        // Its pool may not be mounted, or somebody moved it: an empty one in its place would hide that.
        return Decision::Refuse {
            reason: format!(
                "disk-gone: {id}, which {user} has had, is not there, and is not made anew by itself; put its file \
                 back, or see `rhyzome node drift`"
            ),
            permanent: false,
        };
    }
    if view.world.copied.contains(id) {
        return Decision::wait("waits for its snapshot, which is being taken");
    }
    if disk.image_id.is_empty() {
        return Decision::Do(Action::ApplyDisk(disk.clone(), None));
    }
    if let Some(reason) = obstacle(view, &disk.image_id) {
        return Decision::wait(reason);
    }
    match view.orders.get(&disk.image_id).and_then(body) {
        Some(Body::Image(image)) => {
            let base = Base {
                sha256: image.sha256.clone(),
                format: image.format.clone(),
                virtual_size_bytes: image.virtual_size_bytes,
            };
            Decision::Do(Action::ApplyDisk(disk.clone(), Some(base)))
        }
        _ => Decision::refuse(format!("{} is no image", disk.image_id)),
    }
}

pub(super) fn snapshot(view: View<'_>, order: &Order, wanted: &SnapshotOrder) -> Decision {
    let id = &order.object_id;
    match view.world.snapshots.get(id) {
        Some(ObservedSnapshot::Whole(_)) => return Decision::Held,
        Some(ObservedSnapshot::Lost(file)) => {
            let reason = snapshot::lost(id, file).to_string();
            return Decision::Refuse { reason, permanent: false };
        }
        Some(ObservedSnapshot::Unclear(why)) => {
            return Decision::Refuse { reason: why.clone(), permanent: false };
        }
        // One that was begun may go on, where its QEMU has. In a pool that others share, a guest that does not run here any
        // more may run elsewhere by now, and would be held up by a copy beside it.
        Some(ObservedSnapshot::Begun) => {
            let shared = wanted.pool.as_ref().is_some_and(|pool| pool.shared);
            let disk = &wanted.disk_id;
            if shared && open_by(view, disk).is_none() && starts_with(view, disk).is_none() {
                return Decision::refuse(
                    "snapshot-broken: what has copied it ended before it was whole; delete it, and take another",
                );
            }
        }
        None => {
            if let Some(reason) = snapshot::late(wanted, view.now_ms) {
                return Decision::refuse(reason.to_owned());
            }
        }
    }
    if let Some(reason) = obstacle(view, &wanted.disk_id) {
        return Decision::wait(reason);
    }
    let open_by = open_by(view, &wanted.disk_id).map(str::to_owned);
    if open_by.is_none()
        && let Some(user) = starts_with(view, &wanted.disk_id)
    {
        // Beside the guest it would hold the guest up for as long as it takes; under it, it holds nobody up.
        return Decision::wait(format!("waits for {user}, which is to run with its disk"));
    }
    Decision::Do(Action::TakeSnapshot { order: wanted.clone(), open_by })
}

pub(super) fn snapshot_removal(view: View<'_>, order: &Order, body: Option<&Body>) -> Decision {
    let Some(seen) = view.world.snapshots.get(&order.object_id) else {
        return Decision::Do(Action::Forget);
    };
    let open_by = match body {
        // Of one that is whole no QEMU has to be asked.
        Some(Body::Snapshot(snapshot)) if !matches!(seen, ObservedSnapshot::Whole(_)) => {
            open_by(view, &snapshot.disk_id).map(str::to_owned)
        }
        _ => None,
    };
    Decision::Do(Action::RemoveSnapshot { open_by })
}

/// An instance that was booted with this disk.
pub fn used_by<'a>(view: View<'a>, disk_id: &str) -> Option<&'a str> {
    let names = |boot: &BootRecord| boot.order.disks.iter().any(|disk| disk.disk_id == disk_id);
    let mut users = view.world.instances.values();
    users.find(|instance| instance.boot.as_ref().is_some_and(names)).map(|instance| instance.id.as_str())
}

/// The instance whose running QEMU has this disk open.
fn open_by<'a>(view: View<'a>, disk_id: &str) -> Option<&'a str> {
    let running = view.world.instances.values().filter(|instance| instance.process.is_some());
    running
        .filter(|instance| {
            let boot = instance.boot.as_ref();
            boot.is_some_and(|boot| boot.order.disks.iter().any(|disk| disk.disk_id == disk_id))
        })
        .map(|instance| instance.id.as_str())
        .next()
}

/// The instance that is to run with this disk, and does not run yet.
fn starts_with<'a>(view: View<'a>, disk_id: &str) -> Option<&'a str> {
    let is_to_run = |order: &Order| match body(order) {
        Some(Body::Instance(instance)) => {
            instance.power() != Power::Off && instance.disks.iter().any(|disk| disk.disk_id == disk_id)
        }
        _ => false,
    };
    let mut users = view.orders.iter().filter(|(_, order)| !order.remove && is_to_run(order));
    users.next().map(|(id, _)| id.as_str())
}

fn disks(view: View<'_>) -> impl Iterator<Item = (&str, &DiskOrder)> {
    view.orders.iter().filter_map(|(id, order)| match body(order) {
        Some(Body::Disk(disk)) => Some((id.as_str(), disk)),
        _ => None,
    })
}

fn body(order: &Order) -> Option<&Body> {
    order.body.as_ref()?.body.as_ref()
}
