//! What drivers would make, noted in a world that the next decision is made from. They are fakes, for simulation only.

use rhyzome_agent::drivers::disk::ObservedDisk;
use rhyzome_agent::drivers::image::ObservedImage;
use rhyzome_agent::drivers::instance::{ObservedInstance, ObservedProcess};
use rhyzome_agent::reconcile::{Action, World};

pub use rhyzome_agent::plain::ObservedPlain as Observed;

/// True if this needs room on the disk.
pub fn writes(action: &Action) -> bool {
    matches!(
        action,
        Action::FetchImage(_)
            | Action::ApplyDisk(..)
            | Action::GrowOpenDisk { .. }
            | Action::ApplyNetwork(_)
            | Action::ApplyPlain(..)
            | Action::Start { .. }
    )
}

/// Does one action on one object, but for those of plain kinds, whose drivers are real everywhere. `deaf`: guests do not
/// hear the power button; `pids`: the greatest number of a process so far.
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
        Action::Rewrite | Action::ApplyPlain(..) | Action::RemovePlain(_) | Action::Forget => {}
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
