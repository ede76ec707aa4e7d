//! An instance that a node holds and nobody here knows: what a record of it is.

use std::collections::BTreeMap;

use prost::Message as _;
use rhyzome_proto::v1::{DiskOrder, InstanceOrder, Orphan, Power};
use serde_json::{Map, Value, json};

use crate::kernel::adopt::Adopted;
use crate::kernel::ssh::{HOST_CERTIFICATE, USER_AUTHORITY};

/// From an encoded `rhyzome.v1.Orphan`; or why no record can be made.
pub fn adopted(id: &str, found: &[u8]) -> Result<Adopted, String> {
    let found =
        Orphan::decode(found).map_err(|error| format!("what its node says cannot be read: {error}"))?;
    let order = found.order.clone().ok_or("its node does not say what it was booted as")?;
    let root = order.disks.iter().find(|disk| disk.boot).ok_or("it has no root disk")?;
    let disk = found.root.clone().filter(|disk| !disk.image_id.is_empty());
    let disk = disk.ok_or(
        "its node has lost the order for its root disk, so nobody can say which image that stands on",
    )?;
    let child = Adopted {
        id: root.disk_id.clone(),
        generation: signed(found.root_generation),
        placement_epoch: signed(found.root_placement_epoch),
        ..Adopted::default()
    };
    Ok(Adopted {
        id: id.to_owned(),
        tenant: found.tenant.clone(),
        name: if found.name.is_empty() { order.hostname.clone() } else { found.name.clone() },
        generation: signed(found.generation),
        placement_epoch: signed(found.placement_epoch),
        spec: spec(&order, &disk),
        claims: claims(&order),
        values: Map::from_iter([("boot_epoch".to_owned(), json!(order.boot_epoch))]),
        children: BTreeMap::from([("root".to_owned(), child)]),
    })
}

fn spec(order: &InstanceOrder, disk: &DiskOrder) -> Value {
    let nics: Map<String, Value> =
        order.nics.iter().map(|nic| (nic.name.clone(), json!({"network": nic.network_id}))).collect();
    let further = order.disks.iter().filter(|disk| !disk.boot);
    let disks: Map<String, Value> = further
        .map(|disk| (disk.name.clone(), json!({"disk": disk.disk_id, "read_only": disk.read_only})))
        .collect();
    let power = match order.power() {
        Power::Off => "off",
        Power::Paused => "paused",
        Power::On | Power::Unspecified => "on",
    };
    let mut spec = json!({
        "root": {"image": disk.image_id, "size_bytes": disk.size_bytes},
        "vcpus": order.vcpus, "memory_bytes": order.memory_bytes, "nics": nics, "power": power,
        "stop_deadline_seconds": order.stop_deadline_seconds.clamp(1, 3600),
    });
    if let Some(pool) = disk.pool.as_ref().filter(|pool| !pool.id.is_empty()) {
        spec["root"]["pool"] = json!(pool.id);
    }
    if !disks.is_empty() {
        spec["disks"] = Value::Object(disks);
    }
    if !order.user_data.is_empty() {
        spec["user_data"] = json!(order.user_data);
    }
    spec
}

/// Addresses and MACs stay what they are: the guest has them.
fn claims(order: &InstanceOrder) -> Map<String, Value> {
    let mut claims = Map::new();
    for nic in &order.nics {
        let address = nic.address.split('/').next().unwrap_or_default();
        claims.insert(format!("nics.{}.address", nic.name), json!(address));
        claims.insert(format!("nics.{}.mac", nic.name), json!(nic.mac));
    }
    // Its SSH key is in the guest, and nowhere here; what was said of it stays true.
    if let Some(ssh) = &order.ssh {
        claims.insert(HOST_CERTIFICATE.into(), json!(ssh.host_certificate));
        claims.insert(USER_AUTHORITY.into(), json!(ssh.user_authority));
    }
    claims
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use rhyzome_proto::v1::{InstanceDisk, InstanceNic};

    use super::*;

    fn orphan() -> Orphan {
        let nic = InstanceNic {
            name: "lan".into(),
            network_id: "net_1".into(),
            mac: "52:54:00:00:00:01".into(),
            address: "10.0.0.5/24".into(),
        };
        let root = InstanceDisk {
            name: "root".into(),
            disk_id: "disk_1".into(),
            boot: true,
            ..InstanceDisk::default()
        };
        let order = InstanceOrder {
            hostname: "web".into(),
            vcpus: 2,
            memory_bytes: 1 << 28,
            disks: vec![root],
            nics: vec![nic],
            power: Power::On.into(),
            boot_epoch: 4,
            stop_deadline_seconds: 60,
            ..InstanceOrder::default()
        };
        let root = DiskOrder { size_bytes: 1 << 30, image_id: "img_1".into(), ..DiskOrder::default() };
        Orphan {
            generation: 7,
            placement_epoch: 2,
            order: Some(order),
            root: Some(root),
            ..Orphan::default()
        }
    }

    #[test]
    fn a_record_is_what_the_guest_is() {
        let adopted = adopted("inst_1", &orphan().encode_to_vec()).unwrap();
        assert_eq!((adopted.name.as_str(), adopted.generation, adopted.placement_epoch), ("web", 7, 2));
        assert_eq!(adopted.spec["root"], json!({"image": "img_1", "size_bytes": 1 << 30}));
        assert_eq!(adopted.spec["nics"], json!({"lan": {"network": "net_1"}}));
        assert_eq!(adopted.claims["nics.lan.address"], "10.0.0.5");
        assert_eq!(
            (&adopted.values["boot_epoch"], adopted.children["root"].id.as_str()),
            (&json!(4), "disk_1")
        );
    }

    #[test]
    fn what_nobody_can_say_is_not_made_up() {
        let lost = Orphan { root: None, ..orphan() };
        assert!(adopted("inst_1", &lost.encode_to_vec()).unwrap_err().contains("root disk"));
        let empty = Orphan::default();
        assert!(adopted("inst_1", &empty.encode_to_vec()).unwrap_err().contains("booted as"));
    }
}
