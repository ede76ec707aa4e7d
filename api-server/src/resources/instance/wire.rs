//! An instance as its node hears of it, and what the node says of it.

use std::collections::BTreeSet;

use prost::Message as _;
use rhyzome_proto::v1::{
    self, InstanceDisk, InstanceNic, InstanceOrder, InstanceSsh, OrderBody, Power, StopMode, StoragePool,
    order_body::Body, report,
};
use serde_json::Value;

use super::validate::range;
use super::{Instance, InstanceHa, InstancePower, disk_field, nic_field, size};
use crate::kernel::ssh::{HOST_CERTIFICATE, USER_AUTHORITY};
use crate::kernel::{Fact, Facts, Object, Order, Timestamp, secret};

pub fn order(object: &Object<Instance>, facts: &Facts) -> Order {
    let (spec, claims) = (&object.spec, &object.claims);
    let (vcpus, memory_bytes) = size(spec, facts);
    let disks = disks(object, facts);
    let nics = nics(object, facts);
    let mut needs: Vec<String> = nics.iter().map(|nic| nic.network_id.clone()).collect();
    needs.sort();
    needs.dedup();
    needs.extend(disks.iter().map(|disk| disk.disk_id.clone()));
    let keys = (0..spec.ssh_keys.len())
        .filter_map(|index| facts.get(&format!("spec.ssh_keys.{index}"))?.spec("/public_key"));
    let hard = claims.0.get("stop_hard").and_then(Value::as_bool).unwrap_or(false);
    let deadline = u32::try_from(claims.number("stop_deadline_seconds")).unwrap_or(0);
    let body = InstanceOrder {
        hostname: object.core.name.clone(),
        vcpus,
        memory_bytes,
        architecture: architecture(facts),
        disks,
        nics,
        user_data: spec.user_data.clone().unwrap_or_default(),
        authorized_keys: keys.collect(),
        power: power(spec.power).into(),
        boot_epoch: claims.number("boot_epoch"),
        stop_mode: (if hard { StopMode::Hard } else { StopMode::Graceful }).into(),
        stop_deadline_seconds: if deadline == 0 { spec.stop_deadline_seconds } else { deadline },
        ha_restart: spec.ha == InstanceHa::Restart,
        ssh: claims.text(HOST_CERTIFICATE).map(|certificate| InstanceSsh {
            host_key: spec.ssh_host_key.clone().unwrap_or_default(),
            host_certificate: certificate.to_owned(),
            user_authority: claims.text(USER_AUTHORITY).unwrap_or_default().to_owned(),
        }),
    };
    Order { body: OrderBody { body: Some(Body::Instance(body)) }.encode_to_vec(), needs }
}

/// The only secret that it can hold; what users have written may look like one.
pub fn sealed_in(body: &[u8]) -> BTreeSet<String> {
    let order = OrderBody::decode(body).ok().and_then(|order| order.body);
    let Some(Body::Instance(InstanceOrder { ssh: Some(ssh), .. })) = order else { return BTreeSet::new() };
    secret::id_of(&ssh.host_key).map(str::to_owned).into_iter().collect()
}

fn architecture(facts: &Facts) -> String {
    let machine_type = facts.get("spec.machine_type");
    machine_type.and_then(|mt| mt.spec("/architecture")).unwrap_or_else(|| "x86_64".into())
}

fn power(power: InstancePower) -> Power {
    match power {
        InstancePower::On => Power::On,
        InstancePower::Off => Power::Off,
        InstancePower::Paused => Power::Paused,
    }
}

fn disks(object: &Object<Instance>, facts: &Facts) -> Vec<InstanceDisk> {
    let root = object.claims.text("root").map(|id| InstanceDisk {
        name: "root".into(),
        disk_id: id.into(),
        read_only: false,
        boot: true,
        pool: facts.get("spec.root.pool").map(|pool| storage_pool(&pool.id, &pool.spec)),
    });
    let further = object.spec.disks.iter().filter_map(|(name, disk)| {
        let fact = facts.get(&disk_field(name))?;
        Some(InstanceDisk {
            name: name.clone(),
            disk_id: fact.id.clone(),
            read_only: disk.read_only,
            boot: false,
            pool: kept_pool(fact),
        })
    });
    root.into_iter().chain(further).collect()
}

/// The pool that a disk keeps in its claims.
fn kept_pool(disk: &Fact) -> Option<StoragePool> {
    let pool = disk.claims.get("pool")?;
    Some(storage_pool(pool.get("id")?.as_str()?, pool))
}

fn storage_pool(id: &str, pool: &Value) -> StoragePool {
    let text = |key: &str| pool.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let shared = pool.get("shared").and_then(Value::as_bool).unwrap_or(false);
    StoragePool { id: id.to_owned(), driver: text("driver"), path: text("path"), shared }
}

fn nics(object: &Object<Instance>, facts: &Facts) -> Vec<InstanceNic> {
    let nic = |name: &String| {
        let network = facts.get(&nic_field(name))?;
        let (cidr, _) = range(network)?;
        let given = |what: &str| object.claims.text(&format!("nics.{name}.{what}"));
        Some(InstanceNic {
            name: name.clone(),
            network_id: network.id.clone(),
            mac: given("mac")?.to_owned(),
            address: format!("{}/{}", given("address")?, cidr.prefix_len()),
        })
    };
    object.spec.nics.keys().filter_map(nic).collect()
}

pub fn observe(object: &mut Object<Instance>, report: &[u8]) {
    let Ok(said) = v1::Report::decode(report) else { return };
    let status = &mut object.status;
    status.away = false;
    status.message = (!said.message.is_empty()).then_some(said.message);
    let Some(report::Body::Instance(instance)) = said.body else { return };
    let started = i64::try_from(instance.started_at_ms).unwrap_or(0);
    status.power = instance.power;
    status.started_at = (started > 0).then(|| Timestamp(started.saturating_mul(1000)));
    status.restarts = instance.restarts;
    status.accelerator = (!instance.accelerator.is_empty()).then_some(instance.accelerator);
    status.pending = instance.pending.iter().map(|field| format!("spec.{field}")).collect();
}
