//! What the server is told of one object: pure, from the order, the decision and what is there.

use crate::drivers::instance::ObservedInstance;
use crate::drivers::snapshot::ObservedSnapshot;
use crate::lease::Standing;
use crate::ledger::{Gone, Refused};
use crate::reconcile::{Action, Decision, World, is_stopping, pending};
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::report::Body as ReportBody;
use rhyzome_proto::v1::{
    DiskReport, ImageReport, InstanceOrder, InstanceReport, NetworkReport, Order, Power, Report, ReportState,
    SnapshotReport,
};
use std::borrow::Cow;

/// What came of the last attempt at an object, if it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One line.
    pub message: String,
    /// No retry will help.
    pub permanent: bool,
}

/// The report on one object, without what was rendered for it.
pub fn of(
    order: &Order,
    decision: &Decision,
    world: &World,
    failure: Option<&Failure>,
    progress_percent: Option<u32>,
) -> Report {
    let (state, message, permanent) = match (decision, failure) {
        (Decision::Held, _) => (ReportState::Applied, String::new(), false),
        (Decision::Refuse { reason, permanent }, _) => (ReportState::Failed, reason.clone(), *permanent),
        (Decision::Do(_), Some(failure)) => (ReportState::Failed, failure.message.clone(), failure.permanent),
        (Decision::Do(action), None) => (ReportState::Working, doing(action).to_owned(), false),
        (Decision::Wait { reason, .. }, _) => (ReportState::Working, reason.clone(), false),
    };
    Report {
        object_id: order.object_id.clone(),
        placement_epoch: order.placement_epoch,
        generation: order.generation,
        state: state.into(),
        message,
        permanent,
        progress_percent: progress_percent.filter(|_| state == ReportState::Working).unwrap_or(0),
        body: body(order, decision, world),
        ..Report::default()
    }
}

/// The answer to an order that was not taken.
pub fn of_refused(order: &Order, refused: &Refused) -> Report {
    Report {
        object_id: order.object_id.clone(),
        placement_epoch: order.placement_epoch,
        generation: order.generation,
        state: ReportState::Failed.into(),
        message: refused.to_string(),
        permanent: true,
        ..Report::default()
    }
}

/// The answer to a removing order that was carried out.
pub fn of_gone(object_id: &str, gone: &Gone) -> Report {
    Report {
        object_id: object_id.to_owned(),
        placement_epoch: gone.placement_epoch,
        generation: gone.generation,
        sequence: gone.sequence,
        state: ReportState::Gone.into(),
        ..Report::default()
    }
}

/// Something is here that no order speaks of: shown, never destroyed.
pub fn of_unknown(object_id: &str, what: &str) -> Report {
    Report {
        object_id: object_id.to_owned(),
        state: ReportState::Failed.into(),
        message: format!("unknown: this node holds the {what} {object_id} and was never told to; left alone"),
        ..Report::default()
    }
}

/// The same report for the question "is there anything new": sizes that move all the time are made coarse.
pub fn coarse(report: &Report) -> Cow<'_, Report> {
    let body = match &report.body {
        Some(ReportBody::Disk(disk)) => {
            ReportBody::Disk(DiskReport { allocated_bytes: disk.allocated_bytes >> 26, ..*disk })
        }
        Some(ReportBody::Image(image)) => {
            ReportBody::Image(ImageReport { bytes_on_disk: image.bytes_on_disk >> 26 })
        }
        _ => return Cow::Borrowed(report),
    };
    Cow::Owned(Report { body: Some(body), ..report.clone() })
}

fn doing(action: &Action) -> &'static str {
    match action {
        Action::FetchImage(_) => "fetching the image",
        Action::ApplyDisk(..) => "making the disk",
        Action::GrowOpenDisk { .. } => "growing the disk",
        Action::TakeSnapshot { .. } => "copying the disk",
        Action::ApplyNetwork(_) => "bringing up the network",
        Action::Start { .. } => "starting the guest",
        Action::PressPower | Action::Kill => "stopping the guest",
        Action::Guard(_) => "marking the guest",
        Action::Rewrite => "writing the guest's files again",
        Action::Pause | Action::Resume => "pausing or resuming the guest",
        Action::ApplyPlain(..) => "making it so",
        Action::RemoveImage(_)
        | Action::RemoveDisk(_)
        | Action::RemoveSnapshot { .. }
        | Action::RemoveNetwork
        | Action::RemoveInstance
        | Action::RemovePlain(_)
        | Action::Forget => "removing",
    }
}

fn body(order: &Order, decision: &Decision, world: &World) -> Option<ReportBody> {
    let id = order.object_id.as_str();
    match order.body.as_ref()?.body.as_ref()? {
        Body::Image(image) => {
            let seen = world.images.get(&image.sha256)?;
            Some(ReportBody::Image(ImageReport { bytes_on_disk: seen.bytes_on_disk }))
        }
        Body::Disk(_) => {
            let seen = world.disks.get(id)?;
            Some(ReportBody::Disk(DiskReport {
                virtual_size_bytes: seen.virtual_size_bytes,
                allocated_bytes: seen.allocated_bytes,
            }))
        }
        Body::Snapshot(_) => match world.snapshots.get(id)? {
            ObservedSnapshot::Whole(content) => Some(ReportBody::Snapshot(SnapshotReport {
                sha256: content.sha256.clone(),
                size_bytes: content.size_bytes,
                virtual_size_bytes: content.virtual_size_bytes,
                taken_at_ms: content.taken_at_ms,
            })),
            ObservedSnapshot::Begun | ObservedSnapshot::Lost(_) | ObservedSnapshot::Unclear(_) => None,
        },
        Body::Network(_) => {
            world.networks.get(id)?;
            Some(ReportBody::Network(NetworkReport { namespace: crate::names::namespace(id) }))
        }
        Body::Plain(_) => {
            let seen = world.plain.get(order.kind.as_str())?.get(id)?;
            Some(ReportBody::Plain(seen.report.clone()))
        }
        Body::Instance(instance) => {
            let mut report = of_instance(instance, decision, world.instances.get(id));
            if report.power == "crashed" && instance.ha_restart && world.lease != Standing::Held {
                // Whoever stopped it, agent or guard: it was no accident.
                report.power = "stopped".into();
            }
            Some(ReportBody::Instance(report))
        }
    }
}

fn of_instance(
    instance: &InstanceOrder,
    decision: &Decision,
    seen: Option<&ObservedInstance>,
) -> InstanceReport {
    let boot = seen.and_then(|seen| seen.boot.as_ref());
    let process = seen.and_then(|seen| seen.process);
    let power = match process {
        Some(_) if is_stopping(instance, boot) => "stopping",
        Some(process) if process.paused => "paused",
        Some(_) => "running",
        None if matches!(decision, Decision::Do(Action::Start { .. })) => "starting",
        None if instance.power() == Power::Off || boot.is_none_or(|boot| boot.stop_asked_at_ms > 0) => {
            "stopped"
        }
        None => "crashed",
    };
    let running = boot.filter(|_| process.is_some());
    InstanceReport {
        power: power.into(),
        started_at_ms: running.map_or(0, |boot| boot.started_at_ms),
        restarts: boot.map_or(0, |boot| boot.restarts),
        boot_epoch: running.map_or(0, |boot| boot.boot_epoch),
        booted_generation: running.map_or(0, |boot| boot.generation),
        pending: running.map_or_else(Vec::new, |boot| pending(instance, &boot.order)),
        pid: process.map_or(0, |process| process.pid),
        accelerator: running.map_or_else(String::new, |boot| boot.accelerator.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::instance::{BootRecord, ObservedProcess};
    use rhyzome_proto::v1::OrderBody;

    fn power(
        instance: &InstanceOrder,
        decision: &Decision,
        seen: Option<ObservedInstance>,
    ) -> InstanceReport {
        let body = Some(OrderBody { body: Some(Body::Instance(instance.clone())) });
        let order = Order { object_id: "inst".into(), body, ..Order::default() };
        let mut world = World::default();
        world.instances.extend(seen.map(|seen| ("inst".to_owned(), seen)));
        match of(&order, decision, &world, None, None).body {
            Some(ReportBody::Instance(report)) => report,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn power_is_told_as_it_is() {
        let on =
            InstanceOrder { power: Power::On.into(), vcpus: 2, boot_epoch: 1, ..InstanceOrder::default() };
        let booted = InstanceOrder { vcpus: 1, ..on.clone() };
        let boot = BootRecord::new(&booted, 7, "tcg", "boot", 5);
        let process = Some(ObservedProcess { pid: 42, paused: false });
        let seen = ObservedInstance { id: "inst".into(), boot: Some(boot.clone()), process };
        let report = power(&on, &Decision::Held, Some(seen.clone()));
        assert_eq!((report.power.as_str(), report.pid, report.booted_generation), ("running", 42, 7));
        assert_eq!(report.pending, ["vcpus"]);
        let off = InstanceOrder { power: Power::Off.into(), ..on.clone() };
        assert_eq!(power(&off, &Decision::Held, Some(seen.clone())).power, "stopping");
        let dead = ObservedInstance { process: None, ..seen };
        let soon = Decision::Wait { reason: String::new(), until_ms: None };
        let report = power(&on, &soon, Some(dead.clone()));
        assert_eq!((report.power.as_str(), report.pid, report.started_at_ms), ("crashed", 0, 0));
        assert_eq!(power(&off, &Decision::Held, Some(dead)).power, "stopped");
        assert_eq!(power(&on, &soon, None).power, "stopped");
    }

    #[test]
    fn a_failure_is_told_until_something_else_is_tried() {
        let order = Order { object_id: "x".into(), generation: 3, ..Order::default() };
        let failure = Failure { message: "no room".into(), permanent: false };
        let trying = Decision::Do(Action::RemoveNetwork);
        let report = of(&order, &trying, &World::default(), Some(&failure), None);
        assert_eq!((report.state(), report.message.as_str()), (ReportState::Failed, "no room"));
        let held = of(&order, &Decision::Held, &World::default(), Some(&failure), None);
        assert_eq!((held.state(), held.generation), (ReportState::Applied, 3));
    }
}
