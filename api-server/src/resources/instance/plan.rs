//! What is to be done to make, change, start, stop and take away an instance.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::validate::range;
use super::{
    Instance, InstanceHa, InstancePower, disk_field, group_field, home, image_field, nic_field, root_size,
    size, ssh_host_key,
};
use crate::kernel::place::{Group, Needs};
use crate::kernel::resource::Call;
use crate::kernel::ssh::{HOST_CERTIFICATE, USER_AUTHORITY};
use crate::kernel::{
    Child, Claim, ClaimKind, Clash, Error, Fact, Facts, FieldError, Object, Plan, Step, Who,
};

/// How long fetching an image, making disks and starting QEMU may take.
const APPLY_SECONDS: u32 = 300;
/// What a node may take beyond the guest's own deadline to stop it.
const STOP_MARGIN_SECONDS: u32 = 60;

type This = Object<Instance>;

pub fn create(object: &This, facts: &Facts) -> Plan {
    let mut values = power_values(1, false, object.spec.stop_deadline_seconds);
    if object.spec.root.keep {
        values.insert("keep_root".into(), true.into());
    }
    values.extend(ha_value(None, object));
    let children: Vec<Child> = root(object, facts).into_iter().collect();
    let mut steps = prepare(object, facts);
    let image = image_field(&object.spec);
    if facts.get(image).is_some() {
        steps.push(Step::Assign { who: Who::Ref(image.into()) });
    }
    steps.extend(children.iter().map(|child| Step::Assign { who: Who::Child(child.key.clone()) }));
    steps.extend(Step::apply(APPLY_SECONDS));
    Plan { claims: claims(object, facts), values, children, steps, ..Plan::default() }
}

pub fn update(old: &This, new: &This, facts: &Facts) -> Plan {
    let deadline = new.spec.stop_deadline_seconds;
    let mut plan = Plan {
        claims: claims(new, facts),
        values: power_values(old.claims.number("boot_epoch"), false, deadline),
        ..Plan::default()
    };
    if new.spec.root.keep {
        plan.values.insert("keep_root".into(), true.into());
    }
    plan.values.extend(ha_value(Some(old), new));
    if (old.spec.power, new.spec.power) == (InstancePower::Off, InstancePower::Paused) {
        plan.errors.push(FieldError::new("spec.power", "it is off: start it before you pause it"));
    }
    plan.steps = prepare(new, facts);
    let stopping = new.spec.power == InstancePower::Off;
    plan.steps.extend(Step::apply(if stopping { stop_seconds(deadline) } else { APPLY_SECONDS }));
    plan
}

pub fn remove(object: &This) -> Plan {
    let mut plan =
        Plan::steps([Step::Unassign { who: Who::This }, Step::AwaitGone { who: Who::This }, Step::Release]);
    if object.spec.root.keep {
        plan.values.insert("keep_root".into(), true.into());
    }
    plan
}

pub fn act(object: &This, call: &Call) -> Result<Plan, Error> {
    use InstancePower::{Off, On, Paused};
    let wrong = |why: &str| Err(Error::Clash(Clash::WrongState(why.to_owned())));
    let now = object.spec.power;
    let epoch = object.claims.number("boot_epoch");
    let crashed = object.status.power == "crashed";
    let (power, epoch) = match (call.verb.as_str(), now) {
        // One that died for good is wanted on already: only a new boot brings it back.
        ("start", On) if crashed => (On, epoch + 1),
        ("start", Paused) => return wrong("it is paused: resume it"),
        ("start", On | Off) => (On, epoch),
        ("stop", _) => (Off, epoch),
        ("restart", Off) => return wrong("it is stopped: start it"),
        ("restart", Paused) if !call.hard => {
            return wrong("it is paused and cannot shut down: resume it first, or restart it hard");
        }
        ("restart", On | Paused) => (On, epoch + 1),
        ("pause", Off) => return wrong("it is stopped: there is nothing to pause"),
        ("pause", On | Paused) => (Paused, epoch),
        ("resume", Off) => return wrong("it is stopped: start it"),
        ("resume", On | Paused) => (On, epoch),
        (verb, _) => return Err(Error::field("action", format!("an instance has no action `{verb}`"))),
    };
    let deadline = call.deadline_seconds.unwrap_or(object.spec.stop_deadline_seconds);
    if !(1..=3600).contains(&deadline) {
        return Err(Error::field("deadline_seconds", "must be 1 to 3600"));
    }
    let mut spec = object.spec.clone();
    spec.power = power;
    let seconds = match call.verb.as_str() {
        "stop" => stop_seconds(deadline),
        "restart" => stop_seconds(deadline) + APPLY_SECONDS,
        _ => APPLY_SECONDS,
    };
    Ok(Plan {
        spec: Some(serde_json::to_value(spec).map_err(|e| Error::Internal(e.to_string()))?),
        values: power_values(epoch, call.hard, deadline),
        steps: Step::apply(seconds).into(),
        ..Plan::default()
    })
}

/// The verb for a change of the wanted power.
pub fn amounts_to(old: InstancePower, new: InstancePower) -> Option<&'static str> {
    use InstancePower::{Off, On, Paused};
    match (old, new) {
        (On | Paused, Off) => Some("stop"),
        (Off, On) => Some("start"),
        (On, Paused) => Some("pause"),
        (Paused, On) => Some("resume"),
        // The last one is refused.
        (On, On) | (Off, Off) | (Paused, Paused) | (Off, Paused) => None,
    }
}

fn stop_seconds(deadline: u32) -> u32 {
    deadline + STOP_MARGIN_SECONDS
}

/// How the node is to bring it to the wanted power. Every plan says all of it, so that a hard stop of
/// yesterday does not make that of today hard.
fn power_values(boot_epoch: u64, hard: bool, deadline_seconds: u32) -> Map<String, Value> {
    let mut values = Map::new();
    values.insert("boot_epoch".into(), boot_epoch.into());
    values.insert("stop_hard".into(), hard.into());
    values.insert("stop_deadline_seconds".into(), deadline_seconds.into());
    values
}

/// From which generation on its node has been told to stop it when it holds no lease: before the node has said that it
/// does so, nobody may start it elsewhere.
fn ha_value(old: Option<&This>, new: &This) -> Option<(String, Value)> {
    let was = old.is_some_and(|old| old.spec.ha == InstanceHa::Restart);
    let begins = new.spec.ha == InstanceHa::Restart && !was;
    begins.then(|| ("ha_since".to_owned(), new.core.generation.into()))
}

/// The root disk that is made with it.
fn root(object: &This, facts: &Facts) -> Option<Child> {
    let spec = &object.spec;
    let image = facts.get(image_field(spec))?;
    // Without content it is refused already; the disk would only say so again.
    image.status::<u64>("/virtual_size_bytes")?;
    let mut disk = json!({"image": image.id});
    if let Some(size) = spec.root.size_bytes {
        disk["size_bytes"] = size.into();
    }
    if let Some(pool) = facts.get("spec.root.pool") {
        disk["pool"] = pool.id.as_str().into();
    }
    // A name has 63 letters at most.
    let stem: String = object.core.name.chars().take(58).collect();
    let name = format!("{}-root", stem.trim_end_matches('-'));
    Some(Child { key: "root".into(), kind: "disk", name, spec: disk, field: "spec.root".into() })
}

/// What its node must hold before it, but for image and root disk: networks and further disks.
fn prepare(object: &This, facts: &Facts) -> Vec<Step> {
    let mut seen = BTreeSet::new();
    let mut steps = Vec::new();
    for name in object.spec.nics.keys() {
        let field = nic_field(name);
        if facts.get(&field).is_some_and(|network| seen.insert(network.id.clone())) {
            steps.push(Step::Assign { who: Who::Ref(field) });
        }
    }
    for name in object.spec.disks.keys() {
        let field = disk_field(name);
        let Some(disk) = facts.get(&field) else { continue };
        // The instance does not name the image of a further disk, but the disk needs it there.
        if let Some(image) = disk.spec::<String>("/image").filter(|image| seen.insert(image.clone())) {
            steps.push(Step::Assign { who: Who::Id(image) });
        }
        if seen.insert(disk.id.clone()) {
            steps.push(Step::Assign { who: Who::Ref(field) });
        }
    }
    steps
}

fn claims(object: &This, facts: &Facts) -> Vec<Claim> {
    let spec = &object.spec;
    let mut claims = Vec::new();
    for (name, nic) in &spec.nics {
        let Some(network) = facts.get(&nic_field(name)) else { continue };
        let key = |what: &str| format!("nics.{name}.{what}");
        let wanted = nic.address.as_ref().map(|address| address.parse().ok());
        if let (Some((cidr, gateway)), false) = (range(network), wanted == Some(None)) {
            let address = ClaimKind::Address {
                network: network.id.clone(),
                cidr,
                reserved: vec![gateway],
                wanted: wanted.flatten(),
            };
            claims.push(Claim::new(key("address"), format!("spec.nics.{name}.address"), address));
        }
        let mac = ClaimKind::Mac { network: network.id.clone() };
        claims.push(Claim::new(key("mac"), format!("spec.nics.{name}"), mac));
    }
    for name in spec.disks.keys() {
        let field = disk_field(name);
        let Some(disk) = facts.get(&field) else { continue };
        let attached = ClaimKind::Exclusive {
            scope: "attached-disk".into(),
            value: disk.id.clone(),
            taken: "is attached to another instance: take it away there first".into(),
        };
        claims.push(Claim::new(format!("disks.{name}"), field, attached));
    }
    // Behind the addresses, for which it is good too.
    if let Some(key) = ssh_host_key(object) {
        let host = ClaimKind::SshHost { public_key: key.to_owned(), names: names(object, facts) };
        claims.push(Claim::new(HOST_CERTIFICATE, "spec.ssh_host_key", host));
        claims.push(Claim::new(USER_AUTHORITY, "spec.ssh_host_key", ClaimKind::SshUsers));
    }
    claims.push(Claim::new("node", "spec.node", ClaimKind::Placement(needs(object, facts))));
    claims
}

/// What it is called, in its tenant and in its networks.
fn names(object: &This, facts: &Facts) -> Vec<String> {
    let name = &object.core.name;
    let within = |nic: &String| {
        let domain = facts.get(&nic_field(nic))?.claims.get("domain")?.as_str()?;
        Some(format!("{name}.{domain}"))
    };
    let mut names: Vec<String> = object.spec.nics.keys().filter_map(within).collect();
    names.dedup();
    names.insert(0, name.clone());
    names
}

fn needs(object: &This, facts: &Facts) -> Needs {
    let spec = &object.spec;
    let (vcpus, memory_bytes) = size(spec, facts);
    let shared = facts.get("spec.root.pool").and_then(|pool| pool.spec("/shared")).unwrap_or(false);
    let machine_type = facts.get("spec.machine_type");
    let pinned = facts.get("spec.node").map(|node| node.id.clone());
    // Once placed it stays: an update asks for room where it is.
    let placed = || object.claims.text("node").map(str::to_owned);
    let rules = match placed() {
        // The rules decided where it went; they do not hold up its changes there.
        Some(_) => Needs::default(),
        None => Needs {
            node_tags: spec.placement.node_tags.clone(),
            groups: groups(object, facts),
            ..Needs::default()
        },
    };
    let with_disk = || spec.disks.keys().find_map(|name| home(name, facts)).map(str::to_owned);
    Needs {
        vcpus,
        memory_bytes,
        disk_bytes: if shared { 0 } else { root_size(spec, facts).unwrap_or(0) },
        architecture: machine_type.and_then(|mt| mt.spec("/architecture")).unwrap_or_default(),
        node: pinned.or_else(placed).or_else(with_disk),
        guests: true,
        restart: spec.ha == InstanceHa::Restart,
        ..rules
    }
}

fn groups(object: &This, facts: &Facts) -> Vec<Group> {
    let fields = (0..object.spec.placement.groups.len()).map(group_field);
    let found = fields.filter_map(|field| facts.get(&field));
    let group = |fact: &Fact| Group {
        id: fact.id.clone(),
        name: fact.name.clone(),
        rule: fact.spec("/rule").unwrap_or_default(),
        policy: fact.spec("/policy").unwrap_or_default(),
    };
    let mut groups: Vec<Group> = found.map(group).collect();
    // They are locked one after the other: all in the same order.
    groups.sort_by(|a, b| a.id.cmp(&b.id));
    groups
}
