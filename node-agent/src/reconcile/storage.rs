//! Images and disks.

use super::{Action, Decision, View, obstacle};
use crate::drivers::disk::Base;
use crate::drivers::instance::BootRecord;
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{DiskOrder, ImageOrder, Order};

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

fn disks(view: View<'_>) -> impl Iterator<Item = (&str, &DiskOrder)> {
    view.orders.iter().filter_map(|(id, order)| match body(order) {
        Some(Body::Disk(disk)) => Some((id.as_str(), disk)),
        _ => None,
    })
}

fn body(order: &Order) -> Option<&Body> {
    order.body.as_ref()?.body.as_ref()
}
