//! All that can be wrong with an instance's spec.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    Instance, InstanceHa, InstancePower, disk_field, group_field, home, image_field, is_shared, nic_field,
};
use crate::kernel::{Facts, FieldError, NameRule, Object, name, secret, ssh};

const MIB: u64 = 1 << 20;
const MOST_NICS: usize = 8;
const MOST_DISKS: usize = 16;
const MOST_GROUPS: usize = 8;
const MOST_KEYS: usize = 64;
const MOST_USER_DATA: usize = 64 << 10;

type Errors = Vec<FieldError>;

pub fn all(object: &Object<Instance>, facts: &Facts, creating: bool) -> Errors {
    let mut errors = Vec::new();
    image(object, facts, creating, &mut errors);
    sizes(object, &mut errors);
    nics(object, facts, &mut errors);
    disks(object, facts, &mut errors);
    groups(object, facts, &mut errors);
    first_boot(object, &mut errors);
    ha(object, facts, &mut errors);
    if creating && object.spec.power == InstancePower::Paused {
        errors.push(FieldError::new("spec.power", "an instance begins `on` or `off`; pause it later"));
    }
    errors
}

fn image(object: &Object<Instance>, facts: &Facts, creating: bool, errors: &mut Errors) {
    let spec = &object.spec;
    match (&spec.image, &spec.root.image) {
        (None, None) => errors.push(FieldError::new("spec.image", "say which image it is to boot")),
        (Some(_), Some(_)) => {
            errors.push(FieldError::new("spec.root.image", "say the image once: here or in `image`"));
        }
        _ => {}
    }
    let field = image_field(spec);
    let empty = |image: &crate::kernel::Fact| image.status::<u64>("/virtual_size_bytes").is_none();
    if creating && facts.get(field).is_some_and(empty) {
        let reason = "this image has no content yet: upload it, or wait for its job, and try again";
        errors.push(FieldError::new(field, reason));
    }
}

fn sizes(object: &Object<Instance>, errors: &mut Errors) {
    let spec = &object.spec;
    if spec.vcpus.is_some_and(|vcpus| !(1..=256).contains(&vcpus)) {
        errors.push(FieldError::new("spec.vcpus", "must be 1 to 256"));
    }
    let fits = |bytes: u64| (64 * MIB..=MIB * MIB).contains(&bytes) && bytes.is_multiple_of(MIB);
    if spec.memory_bytes.is_some_and(|bytes| !fits(bytes)) {
        let reason = "must be 64 MiB (67108864) to 1 TiB (1099511627776), a multiple of 1 MiB (1048576)";
        errors.push(FieldError::new("spec.memory_bytes", reason));
    }
    if !(1..=3600).contains(&spec.stop_deadline_seconds) {
        errors.push(FieldError::new("spec.stop_deadline_seconds", "must be 1 to 3600"));
    }
}

fn nics(object: &Object<Instance>, facts: &Facts, errors: &mut Errors) {
    let nics = &object.spec.nics;
    if nics.is_empty() {
        let reason = "an instance must be on a network: leave `nics` out for the network `default`";
        errors.push(FieldError::new("spec.nics", reason));
    }
    if nics.len() > MOST_NICS {
        errors.push(FieldError::new("spec.nics", format!("at most {MOST_NICS}, not {}", nics.len())));
    }
    for (key, nic) in nics {
        refuse_key("spec.nics", key, errors);
        let Some(text) = &nic.address else { continue };
        let field = format!("spec.nics.{key}.address");
        let Ok(address) = text.parse::<Ipv4Addr>() else {
            errors.push(FieldError::new(field, "must be an IPv4 address, such as 10.0.0.9"));
            continue;
        };
        let network = facts.get(&nic_field(key));
        let range = network.and_then(range);
        if let Some(reason) = range.and_then(|(cidr, gateway)| refuse_address(address, cidr, gateway)) {
            errors.push(FieldError::new(field, reason));
        }
    }
}

/// Range and gateway of a network.
pub fn range(network: &crate::kernel::Fact) -> Option<(Ipv4Net, Ipv4Addr)> {
    let cidr: Ipv4Net = network.claims.get("cidr")?.as_str()?.parse().ok()?;
    let gateway = network.spec::<Ipv4Addr>("/gateway").or_else(|| cidr.hosts().next())?;
    Some((cidr, gateway))
}

fn refuse_address(address: Ipv4Addr, cidr: Ipv4Net, gateway: Ipv4Addr) -> Option<String> {
    if !cidr.contains(&address) {
        return Some(format!("is outside the network's range {cidr}"));
    }
    if address == cidr.network() || address == cidr.broadcast() {
        return Some(format!("is the first or last of {cidr}, which no instance can have"));
    }
    (address == gateway).then(|| "is the network's gateway".to_owned())
}

fn disks(object: &Object<Instance>, facts: &Facts, errors: &mut Errors) {
    let disks = &object.spec.disks;
    if disks.len() > MOST_DISKS {
        errors.push(FieldError::new("spec.disks", format!("at most {MOST_DISKS}, not {}", disks.len())));
    }
    let mut seen = BTreeMap::new();
    // Where it must be: as pinned, or where it is, or where its first disk is.
    let pinned = facts.get("spec.node").map(|node| (node.id.as_str(), "the wanted node"));
    let mut place = pinned.or_else(|| object.claims.text("node").map(|node| (node, "the instance")));
    for (key, disk) in disks {
        refuse_key("spec.disks", key, errors);
        if key == "root" {
            errors.push(FieldError::new("spec.disks.root", "`root` is the root disk: choose another name"));
        }
        let field = disk_field(key);
        let id = facts.get(&field).map_or(disk.disk.as_str(), |fact| fact.id.as_str());
        if let Some(first) = seen.insert(id, key) {
            errors.push(FieldError::new(&field, format!("is the same disk as `{first}`")));
        }
        match (home(key, facts), place) {
            (Some(home), Some((node, whose))) if home != node => {
                let reason = format!("is on node {home}, but {whose} is {node}; it cannot be moved");
                errors.push(FieldError::new(&field, reason));
            }
            (Some(home), None) => place = Some((home, "the node of another disk")),
            _ => {}
        }
    }
}

fn groups(object: &Object<Instance>, facts: &Facts, errors: &mut Errors) {
    let groups = &object.spec.placement.groups;
    if groups.len() > MOST_GROUPS {
        errors.push(FieldError::new("spec.placement.groups", format!("at most {MOST_GROUPS}")));
    }
    let mut seen = BTreeSet::new();
    for (index, name) in groups.iter().enumerate() {
        let field = group_field(index);
        let id = facts.get(&field).map_or(name.as_str(), |fact| fact.id.as_str());
        if !seen.insert(id) {
            errors.push(FieldError::new(field, "is named twice"));
        }
    }
}

fn first_boot(object: &Object<Instance>, errors: &mut Errors) {
    let spec = &object.spec;
    if spec.ssh_keys.len() > MOST_KEYS {
        errors.push(FieldError::new("spec.ssh_keys", format!("at most {MOST_KEYS}")));
    }
    // A marker is of one that was judged when it came.
    let key = spec.ssh_host_key.as_deref().filter(|key| secret::id_of(key).is_none());
    if let Some(reason) = key.and_then(ssh::refuse_private) {
        errors.push(FieldError::new("spec.ssh_host_key", reason));
    }
    let length = spec.user_data.as_ref().map_or(0, String::len);
    if length > MOST_USER_DATA {
        let reason = format!("is {length} bytes long, at most {MOST_USER_DATA}: let it fetch the rest");
        errors.push(FieldError::new("spec.user_data", reason));
    }
}

/// What is restarted elsewhere finds its disks there, or needs none.
fn ha(object: &Object<Instance>, facts: &Facts, errors: &mut Errors) {
    let spec = &object.spec;
    if spec.ha != InstanceHa::Restart {
        return;
    }
    if spec.node.is_some() {
        let reason = "with `ha: restart` it must be free to go to another node: leave `node` out";
        errors.push(FieldError::new("spec.node", reason));
    }
    let pool = facts.get("spec.root.pool");
    let local = pool.filter(|pool| !pool.spec::<bool>("/shared").unwrap_or(false));
    if let Some(pool) = local.filter(|_| !spec.stateless) {
        let reason = format!(
            "`restart` needs a root disk that other nodes can use, and the pool `{}` is each node's own: choose a \
             shared pool (`root.pool`), or say `stateless: true`, and it is made from the image again",
            pool.name
        );
        errors.push(FieldError::new("spec.ha", reason));
    }
    for name in spec.disks.keys() {
        let field = disk_field(name);
        if facts.get(&field).is_some_and(|disk| !is_shared(disk)) {
            let reason =
                "is in a pool that only one node has; with `ha: restart` all disks must be in shared pools";
            errors.push(FieldError::new(field, reason));
        }
    }
}

fn refuse_key(map: &str, key: &str, errors: &mut Errors) {
    if let Some(reason) = name::refuse(key, NameRule::Label) {
        errors.push(FieldError::new(format!("{map}.{key}"), format!("its name {reason}")));
    }
}
