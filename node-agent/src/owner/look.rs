//! A look at everything, beside the owner's loop: what it sees is believed only of things that nobody touched
//! in the meantime.

use super::Drivers;
use super::act::{Seen, look_at_disk, look_at_image, look_at_instance, look_at_snapshot};
use crate::drivers::Deviation;
use crate::drivers::instance::ObservedGuest;
use crate::plain::{Ordered, OrderedAll, Plain};
use crate::reconcile::Orders;
use rhyzome_proto::v1::order_body::Body;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a look at everything saw.
#[derive(Debug, Default)]
pub struct Sight {
    /// What it saw of each thing.
    pub seen: Vec<Seen>,
    /// All networks that are there; None if that could not be found out.
    pub networks: Option<BTreeSet<String>>,
    /// All instances that have a folder; likewise.
    pub instances: Option<BTreeSet<String>>,
    /// All of each plain kind where that could be found out.
    pub plain: Vec<(&'static str, BTreeSet<String>)>,
    /// Every QEMU that runs on the node.
    pub guests: Vec<ObservedGuest>,
    /// All disks in the agent's own folder; None if that could not be found out.
    pub disk_files: Option<BTreeSet<String>>,
    /// Files of instances that somebody has changed, by instance.
    pub edited: BTreeMap<String, Vec<Deviation>>,
}

pub(super) async fn look(drivers: &Drivers, orders: &Orders) -> Sight {
    let mut sight = Sight::default();
    for (id, order) in orders {
        match order.body.as_ref().and_then(|body| body.body.as_ref()) {
            Some(Body::Image(image)) => sight.seen.push(look_at_image(drivers, &image.sha256)),
            Some(Body::Disk(disk)) => sight.seen.extend(look_at_disk(drivers, id, disk)),
            Some(Body::Snapshot(_)) => sight.seen.push(look_at_snapshot(drivers, id)),
            _ => {}
        }
    }
    match drivers.networks.observe().await {
        Ok(networks) => sight.networks = Some(networks.into_iter().map(|network| network.id).collect()),
        Err(error) => tracing::warn!(%error, "cannot look at the networks"),
    }
    drivers.instances.keep_guard();
    match drivers.instances.ids() {
        Ok(ids) => {
            for id in &ids {
                sight.seen.push(look_at_instance(drivers, id).await);
                drivers.instances.trim_logs(id);
                let edited = drivers.instances.edited(id);
                if !edited.is_empty() {
                    sight.edited.insert(id.clone(), edited);
                }
            }
            sight.instances = Some(ids);
        }
        Err(error) => tracing::warn!(%error, "cannot look at the instances"),
    }
    let (instances, disks) = (drivers.instances.clone(), drivers.disks.clone());
    let looked = tokio::task::spawn_blocking(move || (instances.processes(), disks.ids()));
    match looked.await {
        Ok((guests, disks)) => {
            sight.guests = guests;
            sight.disk_files =
                disks.inspect_err(|error| tracing::warn!(%error, "cannot look at the disks")).ok();
        }
        Err(error) => tracing::warn!(%error, "cannot look at the processes"),
    }
    for driver in &drivers.plain {
        look_at_kind(driver, orders, &mut sight).await;
    }
    sight
}

async fn look_at_kind(driver: &Arc<dyn Plain>, orders: &Orders, sight: &mut Sight) {
    let (driver, kind) = (driver.clone(), driver.kind());
    let of_kind = orders.iter().filter(|(_, order)| order.kind == kind);
    let ordered: OrderedAll =
        of_kind.filter_map(|(id, order)| Some((id.clone(), Ordered::of(order)?))).collect();
    match tokio::task::spawn_blocking(move || driver.look_at_all(&ordered)).await {
        Ok(Ok(here)) => {
            sight.plain.push((kind, here.keys().cloned().collect()));
            sight.seen.extend(here.into_iter().map(|(id, seen)| Seen::Plain(kind, id, Some(seen))));
        }
        Ok(Err(error)) => tracing::warn!(kind, %error, "cannot look at a kind"),
        Err(error) => tracing::warn!(kind, %error, "cannot look at a kind"),
    }
}
