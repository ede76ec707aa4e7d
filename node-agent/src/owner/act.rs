//! Carries out one action by the one driver that it is for, and looks at the result.

use super::Drivers;
use crate::drivers::disk::ObservedDisk;
use crate::drivers::image::ObservedImage;
use crate::drivers::instance::{Beneath, ObservedInstance, Start};
use crate::drivers::network::DesiredNetwork;
use crate::drivers::snapshot::{Closed, ObservedSnapshot};
use crate::drivers::{Deviation, DriverError, Progress};
use crate::host::netns;
use crate::names;
use crate::plain::{ObservedPlain, Ordered, Plain};
use crate::reconcile::Action;
use rhyzome_proto::v1::{DiskOrder, InstanceDisk, InstanceNic, SnapshotOrder};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What was written for an object, by file name.
pub type Rendered = BTreeMap<String, String>;

/// What one look at one thing saw.
#[allow(clippy::large_enum_variant)] // There are few of them, and for a moment.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// An image, by its digest.
    Image(String, Option<ObservedImage>),
    /// A disk.
    Disk(String, Option<ObservedDisk>),
    /// A snapshot.
    Snapshot(String, Option<ObservedSnapshot>),
    /// Brought into this state; None: it is in no known state any more.
    Network(String, Option<(DesiredNetwork, Rendered)>),
    /// Nothing of it is left.
    NetworkGone(String),
    /// An instance, and what was written for it.
    Instance(String, Option<ObservedInstance>, Rendered),
    /// One of a plain kind.
    Plain(&'static str, String, Option<ObservedPlain>),
    /// What somebody had changed of this object, and was put right.
    Repaired(String, Vec<Deviation>),
}

/// One action, come to its end.
#[derive(Debug)]
pub struct Done {
    /// How.
    pub result: Result<(), DriverError>,
    /// What is there now, as far as it can be said.
    pub seen: Vec<Seen>,
}

pub(super) async fn act(
    drivers: &Drivers,
    id: &str,
    action: Action,
    now_ms: u64,
    progress: Progress,
) -> Done {
    let mut seen = Vec::new();
    let result = match action {
        Action::FetchImage(order) => {
            let result = drivers.images.apply(&order, progress).await;
            seen.push(look_at_image(drivers, &order.sha256));
            result
        }
        Action::RemoveImage(sha256) => {
            let result = drivers.images.remove(&sha256);
            seen.push(look_at_image(drivers, &sha256));
            result
        }
        Action::ApplyDisk(order, base) => {
            let result = drivers.disks.apply(id, &order, base.as_ref()).await;
            seen.extend(look_at_disk(drivers, id, &order));
            result
        }
        Action::GrowOpenDisk { instance_id, order } => {
            let result = drivers.instances.resize_disk(&instance_id, id, order.size_bytes).await;
            seen.extend(look_at_disk(drivers, id, &order));
            result
        }
        Action::RemoveDisk(order) => {
            let result = drivers.disks.remove(id, &order);
            seen.extend(look_at_disk(drivers, id, &order));
            result
        }
        Action::TakeSnapshot { order, open_by } => {
            let result = take_snapshot(drivers, id, &order, open_by.as_deref(), now_ms, progress).await;
            seen.push(look_at_snapshot(drivers, id));
            result
        }
        Action::RemoveSnapshot { open_by } => {
            let given_up = match open_by {
                Some(instance) => drivers.instances.end_copy(&instance, id).await,
                None => Ok(()),
            };
            let result = given_up.and_then(|()| drivers.snapshots.remove(id));
            seen.push(look_at_snapshot(drivers, id));
            result
        }
        Action::ApplyNetwork(network) => match drivers.networks.apply(&network).await {
            Ok(applied) => {
                seen.push(Seen::Network(id.to_owned(), Some((network, applied.rendered))));
                if !applied.repaired.is_empty() {
                    seen.push(Seen::Repaired(id.to_owned(), applied.repaired));
                }
                Ok(())
            }
            Err(error) => {
                seen.push(Seen::Network(id.to_owned(), None));
                Err(error)
            }
        },
        Action::RemoveNetwork => {
            let result = drivers.networks.remove(id).await;
            seen.push(match result {
                Ok(()) => Seen::NetworkGone(id.to_owned()),
                Err(_) => Seen::Network(id.to_owned(), None),
            });
            result
        }
        Action::ApplyPlain(kind, ordered) => {
            let (result, now) = act_on_plain(drivers, kind, id, Some(ordered)).await;
            seen.extend(now);
            result
        }
        Action::RemovePlain(kind) => {
            let (result, now) = act_on_plain(drivers, kind, id, None).await;
            seen.extend(now);
            result
        }
        Action::Forget => Ok(()),
        other => {
            let result = act_on_instance(drivers, id, other, now_ms).await;
            seen.push(look_at_instance(drivers, id).await);
            result
        }
    };
    Done { result, seen }
}

/// Makes one of a plain kind as ordered, or leaves nothing of it; what is seen then, if that can be said.
async fn act_on_plain(
    drivers: &Drivers,
    kind: &'static str,
    id: &str,
    ordered: Option<Ordered>,
) -> (Result<(), DriverError>, Vec<Seen>) {
    let object = id.to_owned();
    let done =
        with_driver(&drivers.plain, kind, move |driver| one_plain(driver, kind, object, ordered.as_ref()));
    done.await.unwrap_or_else(|error| (Err(error), Vec::new()))
}

/// Makes these of a plain kind as ordered, whatever helps all of them once.
pub(super) async fn make_together(
    drivers: &[Arc<dyn Plain>],
    kind: &'static str,
    all: Vec<(String, Ordered)>,
) -> Vec<(String, Done)> {
    let ids: Vec<String> = all.iter().map(|(id, _)| id.clone()).collect();
    let done = with_driver(drivers, kind, move |driver| {
        driver.prepare(&all);
        let each = all.into_iter().map(|(id, ordered)| one_plain(driver, kind, id, Some(&ordered)));
        each.collect::<Vec<_>>()
    });
    let done = match done.await {
        Ok(done) => done,
        Err(error) => ids.iter().map(|_| (Err(error.clone()), Vec::new())).collect(),
    };
    ids.into_iter().zip(done).map(|(id, (result, seen))| (id, Done { result, seen })).collect()
}

/// Has a kind's driver do this, which may block.
async fn with_driver<T: Send + 'static>(
    drivers: &[Arc<dyn Plain>],
    kind: &'static str,
    work: impl FnOnce(&dyn Plain) -> T + Send + 'static,
) -> Result<T, DriverError> {
    let Some(driver) = drivers.iter().find(|driver| driver.kind() == kind).cloned() else {
        return Err(DriverError::Permanent(format!("there is no driver of the kind {kind}")));
    };
    let done = tokio::task::spawn_blocking(move || work(&*driver)).await;
    done.map_err(|error| DriverError::Retry(format!("the driver of {kind} ended: {error}")))
}

fn one_plain(
    driver: &dyn Plain,
    kind: &'static str,
    object: String,
    ordered: Option<&Ordered>,
) -> (Result<(), DriverError>, Vec<Seen>) {
    let made = match ordered {
        Some(ordered) => driver.make(&object, ordered),
        None => driver.take_away(&object).map(|()| Vec::new()),
    };
    let mut seen = Vec::new();
    let result = made.map(|repaired| {
        if !repaired.is_empty() {
            seen.push(Seen::Repaired(object.clone(), repaired));
        }
    });
    match driver.look(&object, ordered) {
        Ok(now) => {
            seen.push(Seen::Plain(kind, object, now));
            (result, seen)
        }
        Err(error) => (result.and(Err(error)), seen),
    }
}

/// Copies a disk: through the guest that has it open, or beside all guests.
async fn take_snapshot(
    drivers: &Drivers,
    id: &str,
    order: &SnapshotOrder,
    open_by: Option<&str>,
    now_ms: u64,
    progress: Progress,
) -> Result<(), DriverError> {
    if drivers.snapshots.is_copied(id)? {
        return finish_snapshot(drivers, id, open_by).await;
    }
    let disk = DiskOrder { pool: order.pool.clone(), ..DiskOrder::default() };
    let gone = || DriverError::Retry(format!("{} is not there", order.disk_id));
    let size = drivers.disks.observe(&order.disk_id, &disk)?.ok_or_else(gone)?.virtual_size_bytes;
    // One that an agent before this one has begun goes on.
    let goes_on = match open_by {
        Some(instance) if drivers.snapshots.is_going_on(id)? => {
            drivers.instances.is_copying(instance, id).await?
        }
        Some(instance) => {
            // Whatever it writes to is nothing any more.
            drivers.instances.end_copy(instance, id).await?;
            false
        }
        None => false,
    };
    if !goes_on {
        let bytes = drivers.disks.copied_bytes(&order.disk_id, &disk)?;
        let part = drivers.snapshots.begin(id, order, bytes, now_ms)?;
        match open_by {
            Some(instance) => {
                drivers.snapshots.blank(&part, size)?;
                drivers.instances.begin_copy(instance, &order.disk_id, id, &part).await?;
            }
            None => {
                let path = drivers.disks.path(&order.disk_id, &disk);
                let closed = Closed { path, beneath: drivers.disks.beneath(&order.disk_id, &disk) };
                drivers.snapshots.copy(&part, &closed).await?;
            }
        }
    }
    if let Some(instance) = open_by {
        drivers.instances.await_copy(instance, id, progress, size).await?;
    }
    finish_snapshot(drivers, id, open_by).await
}

/// The copy is complete: it is kept, and then its QEMU need not know of it any more.
async fn finish_snapshot(drivers: &Drivers, id: &str, open_by: Option<&str>) -> Result<(), DriverError> {
    let (snapshots, object) = (drivers.snapshots.clone(), id.to_owned());
    let finished = tokio::task::spawn_blocking(move || snapshots.finish(&object)).await;
    finished.map_err(|error| DriverError::Retry(format!("finish {id}: {error}")))??;
    if let Some(instance) = open_by
        && let Err(error) = drivers.instances.forget_copy(instance, id).await
    {
        // It is taken all the same; its QEMU forgets at its end.
        tracing::debug!(snapshot = id, %error, "QEMU was not told that its copy is kept");
    }
    Ok(())
}

async fn act_on_instance(
    drivers: &Drivers,
    id: &str,
    action: Action,
    now_ms: u64,
) -> Result<(), DriverError> {
    let instances = &drivers.instances;
    match action {
        Action::Start { boot, paused } => {
            let taps = open_taps(id, boot.order.nics.clone()).await?;
            let beneath = boot.order.disks.iter().map(|disk| beneath(drivers, disk)).collect();
            instances.start(Start { id: id.to_owned(), boot: *boot, taps, paused, beneath }).await
        }
        Action::Guard(guarded) => instances.guard_running(id, guarded),
        Action::PressPower => instances.press_power(id, now_ms).await,
        Action::Kill => instances.kill(id, now_ms).await,
        Action::Pause => instances.pause(id).await,
        Action::Resume => instances.resume(id).await,
        Action::RemoveInstance => instances.remove(id, now_ms).await,
        Action::Rewrite => instances.rewrite(id),
        _ => Ok(()),
    }
}

/// The image beneath a disk, where it is not where the disk's own file says.
fn beneath(drivers: &Drivers, disk: &InstanceDisk) -> Option<Beneath> {
    let order = DiskOrder { pool: disk.pool.clone(), ..DiskOrder::default() };
    drivers.disks.beneath(&disk.disk_id, &order).map(|(path, format)| Beneath { path, format })
}

/// The descriptors that QEMU inherits: it never sees the namespaces of its networks.
async fn open_taps(id: &str, nics: Vec<InstanceNic>) -> Result<Vec<OwnedFd>, DriverError> {
    let id = id.to_owned();
    tokio::task::spawn_blocking(move || {
        nics.iter()
            .map(|nic| {
                let (namespace, tap) = (names::namespace(&nic.network_id), names::tap(&id, &nic.name));
                netns::open_tap(&namespace, &tap)
                    .map_err(|error| DriverError::io(format!("open tap {tap} of nic {}", nic.name), &error))
            })
            .collect()
    })
    .await
    .unwrap_or_else(|error| Err(DriverError::Retry(format!("open taps: {error}"))))
}

pub(super) fn look_at_image(drivers: &Drivers, sha256: &str) -> Seen {
    Seen::Image(sha256.to_owned(), drivers.images.observe(sha256))
}

/// None if it cannot be said whether it is there.
pub(super) fn look_at_disk(drivers: &Drivers, id: &str, order: &DiskOrder) -> Option<Seen> {
    match drivers.disks.observe(id, order) {
        Ok(seen) => Some(Seen::Disk(id.to_owned(), seen)),
        Err(error) => {
            tracing::warn!(disk = id, %error, "cannot look at a disk");
            None
        }
    }
}

pub(super) fn look_at_snapshot(drivers: &Drivers, id: &str) -> Seen {
    Seen::Snapshot(id.to_owned(), drivers.snapshots.observe(id))
}

pub(super) async fn look_at_instance(drivers: &Drivers, id: &str) -> Seen {
    let seen = drivers.instances.observe_one(id).await;
    Seen::Instance(id.to_owned(), seen, drivers.instances.rendered(id))
}
