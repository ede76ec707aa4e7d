//! Guests: power, restarts, and what waits for the next boot.

use super::{Action, Decision, View, network, obstacle};
use crate::drivers::instance::BootRecord;
use crate::lease::Standing;
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{InstanceOrder, Order, Power, StopMode};

/// Why a guest that is marked for being restarted elsewhere does not run.
const NO_LEASE: &str = "lease-lost: this node holds no lease, because it reaches no server that can vouch for it; what is \
                        restarted elsewhere (`ha: restart`) does not run here meanwhile";

/// How often a guest that was asked to stop is asked again: firmware and early boot hear nothing.
const PRESS_AGAIN_MS: u64 = 3_000;
/// A guest that ran this long begins a new count of quick deaths.
const CALM_MS: u64 = 300_000;
/// The longest wait between two restarts.
const MAX_BACKOFF_MS: u64 = 60_000;

pub(super) fn removal(view: View<'_>, id: &str) -> Decision {
    if view.world.instances.contains_key(id) {
        return Decision::Do(Action::RemoveInstance);
    }
    // Its taps, leases and rules belong to the networks: gone once they were brought to a state without it.
    let networks = view.orders.values().filter(|order| !order.remove).filter_map(|order| {
        match order.body.as_ref()?.body.as_ref()? {
            Body::Network(network) => Some((order.object_id.as_str(), network)),
            _ => None,
        }
    });
    for (network_id, order) in networks {
        let was_on_it = view.orders.get(id).is_some_and(|order| is_on(order, network_id));
        let has_port = view
            .world
            .in_force
            .get(network_id)
            .is_some_and(|network| network.ports.iter().any(|port| port.instance_id == id));
        if has_port || (was_on_it && !network::is_in_force(view, network_id, order)) {
            return Decision::wait(format!("waits for {network_id} to let go of it"));
        }
    }
    Decision::Do(Action::Forget)
}

fn is_on(order: &Order, network_id: &str) -> bool {
    match order.body.as_ref().and_then(|body| body.body.as_ref()) {
        Some(Body::Instance(instance)) => instance.nics.iter().any(|nic| nic.network_id == network_id),
        _ => false,
    }
}

pub(super) fn decide(view: View<'_>, order: &Order, instance: &InstanceOrder) -> Decision {
    if let Some(nic) = instance.nics.iter().find(|nic| network::address(nic).is_none()) {
        return Decision::refuse(format!("nic {}: {:?} is no IPv4 address", nic.name, nic.address));
    }
    let seen = view.world.instances.get(&order.object_id);
    let boot = seen.and_then(|seen| seen.boot.as_ref());
    match seen.and_then(|seen| seen.process) {
        Some(process) => {
            let guarded = boot.is_some_and(|boot| boot.order.ha_restart);
            if guarded && instance.ha_restart && view.world.lease == Standing::Over {
                return Decision::Do(Action::Kill);
            }
            if is_stopping(instance, boot) {
                return stop(view, &order.object_id, instance, boot, process.paused);
            }
            if guarded != instance.ha_restart {
                // Marked without a lease it would be killed at once.
                return match instance.ha_restart && view.world.lease != Standing::Held {
                    true => Decision::wait(NO_LEASE),
                    false => Decision::Do(Action::Guard(instance.ha_restart)),
                };
            }
            match (instance.power() == Power::Paused, process.paused) {
                (true, false) => Decision::Do(Action::Pause),
                (false, true) => Decision::Do(Action::Resume),
                _ => Decision::Held,
            }
        }
        None if instance.power() == Power::Off => Decision::Held,
        None if instance.ha_restart && view.world.lease != Standing::Held => Decision::wait(NO_LEASE),
        None => start(view, order, instance, boot),
    }
}

/// True if a guest that runs has to stop: it is to be off, or restarted, or was asked to stop before.
pub fn is_stopping(instance: &InstanceOrder, boot: Option<&BootRecord>) -> bool {
    let asked = boot.is_some_and(|boot| boot.stop_asked_at_ms > 0 || boot.boot_epoch < instance.boot_epoch);
    asked || instance.power() == Power::Off
}

fn stop(
    view: View<'_>,
    id: &str,
    instance: &InstanceOrder,
    boot: Option<&BootRecord>,
    paused: bool,
) -> Decision {
    if instance.stop_mode() == StopMode::Hard {
        return Decision::Do(Action::Kill);
    }
    let asked_ms = boot.map_or(0, |boot| boot.stop_asked_at_ms);
    let deadline_ms = asked_ms + u64::from(instance.stop_deadline_seconds) * 1000;
    if asked_ms > 0 && view.now_ms >= deadline_ms {
        return Decision::Do(Action::Kill);
    }
    if paused {
        // A guest whose clock stands still cannot hear the button.
        return Decision::Do(Action::Resume);
    }
    let pressed_ms = view.world.pressed_ms.get(id).copied().unwrap_or(0);
    let again_ms = pressed_ms + PRESS_AGAIN_MS;
    if asked_ms == 0 || view.now_ms >= again_ms {
        return Decision::Do(Action::PressPower);
    }
    Decision::Wait { reason: "the guest is stopping".into(), until_ms: Some(again_ms.min(deadline_ms)) }
}

fn start(view: View<'_>, order: &Order, instance: &InstanceOrder, boot: Option<&BootRecord>) -> Decision {
    if view.world.accelerator.is_empty() {
        return Decision::wait("waits until the accelerator is known");
    }
    let disks = instance.disks.iter().map(|disk| &disk.disk_id);
    let networks = instance.nics.iter().map(|nic| &nic.network_id);
    let mut needs = order.needs.iter().chain(disks).chain(networks);
    if let Some(reason) = needs.find_map(|id| obstacle(view, id)) {
        return Decision::wait(reason);
    }
    if let Some(disk) = instance.disks.iter().find(|disk| view.world.copied.contains(&disk.disk_id)) {
        return Decision::wait(format!("waits for the snapshot of {}, which is being taken", disk.disk_id));
    }
    let mut next = BootRecord::new(
        instance,
        order.generation,
        &view.world.accelerator,
        &view.world.host_boot_id,
        view.now_ms,
    );
    (next.db_epoch, next.placement_epoch) = (order.db_epoch, order.placement_epoch);
    next.secrets.clone_from(&order.secrets);
    if let Some(died) = boot.filter(|boot| has_died(view, instance, boot)) {
        let is_calm = view.now_ms.saturating_sub(died.started_at_ms) > CALM_MS;
        next.restarts = died.restarts.saturating_add(1);
        next.streak = if is_calm { 1 } else { died.streak.saturating_add(1) };
        let at_ms = died.started_at_ms + backoff_ms(next.streak);
        if view.now_ms < at_ms {
            return Decision::Wait { reason: "the guest died; restarted soon".into(), until_ms: Some(at_ms) };
        }
    }
    Decision::Do(Action::Start { boot: Box::new(next), paused: instance.power() == Power::Paused })
}

/// True if the guest of this boot ended although nobody asked it to, and its node did not go down either.
fn has_died(view: View<'_>, instance: &InstanceOrder, boot: &BootRecord) -> bool {
    boot.stop_asked_at_ms == 0
        && boot.boot_epoch == instance.boot_epoch
        && boot.host_boot_id == view.world.host_boot_id
}

/// The first restart is immediate; then 1, 2, 4 ... seconds after the start before.
fn backoff_ms(streak: u32) -> u64 {
    match streak {
        0 | 1 => 0,
        more => 1000_u64.checked_shl(more - 2).unwrap_or(MAX_BACKOFF_MS).min(MAX_BACKOFF_MS),
    }
}

/// Fields of the order that a running guest gets at its next boot.
pub fn pending(instance: &InstanceOrder, booted: &InstanceOrder) -> Vec<String> {
    let differs = [
        ("vcpus", instance.vcpus != booted.vcpus),
        ("memory_bytes", instance.memory_bytes != booted.memory_bytes),
        ("disks", instance.disks != booted.disks),
        ("nics", instance.nics != booted.nics),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()).collect()
}
