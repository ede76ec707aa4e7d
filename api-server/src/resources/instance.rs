//! An instance: a virtual machine.
//!
//! Its life: claims of addresses and of room on a node are granted at once; then the node gets its networks,
//! image and disks, then the instance, which boots. `spec.power` says what is wanted (`start`, `stop`,
//! `pause`... are words for changing it), `status.power` what is. Its root disk is made with it, owned by
//! it, and leaves with it unless `root.keep` is true.

mod adopt;
mod plan;
#[cfg(test)]
mod tests;
mod validate;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::kernel::adopt::Adopted;
use crate::kernel::resource::Call;
use crate::kernel::secret::Made;
use crate::kernel::{
    Action, Change, Error, Fact, Facts, FieldError, Held, Meta, NameRule, Object, Order, Plan, Ref, Resource,
    Scope, Timestamp, ssh,
};

/// An instance.
pub struct Instance;

// === spec ===

/// What an instance is to be. Only an image is required.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"image": "tiny", "nics": {"lan": {}}, "user_data": "#!/bin/sh\necho hello\n"}))]
pub struct InstanceSpec {
    /// Name or id of the image that its root disk starts as: the short form of `root.image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its root disk.
    #[serde(default)]
    pub root: InstanceRoot,
    /// Name or id of its machine type. Without it: the one with the least memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_type: Option<String>,
    /// Virtual processors, if not those of the machine type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 256)]
    pub vcpus: Option<u32>,
    /// Memory, a multiple of 1 MiB, if not that of the machine type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 67108864, maximum = 1099511627776_u64)]
    pub memory_bytes: Option<u64>,
    /// Its network interfaces by name, 1 to 8. Without them: one, in the network `default`.
    #[serde(default = "one_nic")]
    pub nics: BTreeMap<String, InstanceNic>,
    /// Further disks by name, at most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<String, InstanceDisk>,
    /// Names or ids of SSH keys that its first boot lets in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub ssh_keys: Vec<String>,
    /// The private key of its SSH server, for its first boot: Ed25519, without a passphrase, as OpenSSH writes it.
    /// Without it: one is made, which nobody sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, max_length = 4096)]
    pub ssh_host_key: Option<String>,
    /// What its first boot runs or reads: a script (`#!...`) or `#cloud-config`, at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 65536)]
    pub user_data: Option<String>,
    /// Whether it is to run.
    #[serde(default)]
    pub power: InstancePower,
    /// How long a graceful stop may take before it becomes a hard one.
    #[serde(default = "stop_deadline")]
    #[schema(minimum = 1, maximum = 3600, default = 60)]
    pub stop_deadline_seconds: u32,
    /// Name or id of the node that it must be on. Without it: where there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What else decides where it is placed.
    #[serde(default, skip_serializing_if = "InstancePlacement::is_empty")]
    pub placement: InstancePlacement,
    /// What is done when its node is lost.
    #[serde(default, skip_serializing_if = "InstanceHa::is_none")]
    pub ha: InstanceHa,
    /// True: nothing that is only on its root disk matters, so that a new one can be made from the image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(default = false)]
    pub stateless: bool,
}

/// What is done when the node of an instance is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceHa {
    /// Nothing: it goes on there, whatever the node can reach, and nobody knows how it is until the node returns.
    #[default]
    None,
    /// It is started on another node. So it runs on its node only while that can reach a server: it is stopped there
    /// first.
    Restart,
}

impl InstanceHa {
    fn is_none(&self) -> bool {
        *self == InstanceHa::None
    }
}

/// What decides where an instance is placed, besides room.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstancePlacement {
    /// Tags that its node must have: `{"disks": "nvme"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_tags: BTreeMap<String, String>,
    /// Names or ids of the placement groups that it is a member of, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 8)]
    pub groups: Vec<String>,
}

impl InstancePlacement {
    fn is_empty(&self) -> bool {
        *self == InstancePlacement::default()
    }
}

/// The root disk of an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceRoot {
    /// Name or id of the image that it starts as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its size. Without it: that of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1048576, maximum = 17592186044416_u64)]
    pub size_bytes: Option<u64>,
    /// Name or id of the storage pool that keeps it. Without it: the oldest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// True: the disk stays when the instance is deleted.
    #[serde(default)]
    #[schema(default = false)]
    pub keep: bool,
}

/// A network interface of an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceNic {
    /// Name or id of the network. Without it: `default`, which is made when it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Its address. Without it: a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A further disk of an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceDisk {
    /// Name or id of the disk. One instance at a time has it.
    pub disk: String,
    /// True: the guest cannot write to it.
    #[serde(default)]
    #[schema(default = false)]
    pub read_only: bool,
}

/// Whether an instance is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstancePower {
    /// It runs, and is brought back when it dies.
    #[default]
    On,
    /// It does not run.
    Off,
    /// It is in memory, and its processors stand still.
    Paused,
}

fn one_nic() -> BTreeMap<String, InstanceNic> {
    BTreeMap::from([("default".to_owned(), InstanceNic::default())])
}

fn stop_deadline() -> u32 {
    60
}

// === status ===

/// What the instance is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct InstanceStatus {
    /// `running`, `stopped`, `starting`, `stopping`, `paused` or `crashed`; empty before its node said so.
    pub power: String,
    /// Since when it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// How often its node brought it back after it died unasked, since it was last started.
    pub restarts: u32,
    /// `kvm` or `tcg`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// Fields whose change waits for the next stop: `spec.vcpus`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
    /// What its node last said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// True: its node has not been heard of for a while, and all this is what it last said.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
    /// Id of the node that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The public key of its SSH server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_host_key: Option<String>,
    /// What its tenant's SSH authority says of that key: a certificate, as OpenSSH reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_host_certificate: Option<String>,
    /// Id of its root disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_disk: Option<String>,
    /// Its network interfaces by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub nics: BTreeMap<String, InstanceNicStatus>,
}

/// What a network interface was given.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct InstanceNicStatus {
    /// Its address.
    pub address: String,
    /// Its hardware address.
    pub mac: String,
    /// Id of its network.
    pub network: String,
}

impl Resource for Instance {
    const META: Meta = Meta {
        kind: "instance",
        plural: "instances",
        prefix: "inst",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "A virtual machine",
        actions: &[
            Action { verb: "start", doing: "starting", about: "Boot it" },
            Action { verb: "stop", doing: "stopping", about: "Shut it down; hard: pull the plug" },
            Action { verb: "restart", doing: "restarting", about: "Shut it down and boot it again" },
            Action { verb: "pause", doing: "pausing", about: "Let its processors stand still" },
            Action { verb: "resume", doing: "resuming", about: "Let its processors go on" },
        ],
        fields: &[
            ("image", Change::Immutable),
            ("root", Change::Immutable),
            ("ssh_keys", Change::Immutable),
            ("ssh_host_key", Change::Immutable),
            ("user_data", Change::Immutable),
            ("node", Change::Immutable),
            ("placement", Change::Immutable),
            ("machine_type", Change::NeedsStop),
            ("vcpus", Change::NeedsStop),
            ("memory_bytes", Change::NeedsStop),
            ("nics", Change::NeedsStop),
            ("disks", Change::NeedsStop),
        ],
        held: Held::Alone,
        private: &["user_data"],
    };
    type Spec = InstanceSpec;
    type Status = InstanceStatus;

    fn refs(spec: &InstanceSpec) -> Vec<Ref> {
        let mut refs = Vec::new();
        let images = [("spec.image", &spec.image), ("spec.root.image", &spec.root.image)];
        for (field, image) in images {
            refs.extend(image.as_deref().map(|image| Ref::uses(field, "image", image)));
        }
        let pool = spec.root.pool.as_deref();
        refs.push(Ref::uses_or_default("spec.root.pool", "storage-pool", pool, None));
        let machine_type = spec.machine_type.as_deref();
        refs.push(Ref::uses_or_default(
            "spec.machine_type",
            "machine-type",
            machine_type,
            Some("memory_bytes"),
        ));
        for (name, nic) in &spec.nics {
            let network = Ref::uses(nic_field(name), "network", nic.network.as_deref().unwrap_or("default"));
            refs.push(if nic.network.is_none() { network.or_make(json!({})) } else { network });
        }
        for (name, disk) in &spec.disks {
            refs.push(Ref::uses(disk_field(name), "disk", &disk.disk));
        }
        for (index, key) in spec.ssh_keys.iter().enumerate() {
            refs.push(Ref::uses(format!("spec.ssh_keys.{index}"), "ssh-key", key));
        }
        for (index, group) in spec.placement.groups.iter().enumerate() {
            refs.push(Ref::uses(group_field(index), "placement-group", group));
        }
        refs.extend(spec.node.as_deref().map(|node| Ref::uses("spec.node", "node", node)));
        refs
    }

    // === validate ===

    fn validate(object: &Object<Self>, facts: &Facts, creating: bool) -> Vec<FieldError> {
        validate::all(object, facts, creating)
    }

    // === create, update, remove, act ===

    fn create(object: &Object<Self>, facts: &Facts) -> Plan {
        plan::create(object, facts)
    }

    fn update(old: &Object<Self>, new: &Object<Self>, facts: &Facts) -> Plan {
        plan::update(old, new, facts)
    }

    fn remove(object: &Object<Self>) -> Plan {
        plan::remove(object)
    }

    fn act(object: &Object<Self>, call: &Call) -> Result<Plan, Error> {
        plan::act(object, call)
    }

    fn amounts_to(old: &Object<Self>, new: &Object<Self>) -> Option<&'static str> {
        plan::amounts_to(old.spec.power, new.spec.power)
    }

    // === order and observe ===

    fn order(object: &Object<Self>, facts: &Facts) -> Option<Order> {
        Some(wire::order(object, facts))
    }

    fn observe(object: &mut Object<Self>, report: &[u8]) {
        wire::observe(object, report);
    }

    fn sealed_in(body: &[u8]) -> BTreeSet<String> {
        wire::sealed_in(body)
    }

    // === secrets ===

    fn make_secret(path: &str, _random: [u8; 32]) -> Option<Made> {
        (path == "ssh_host_key").then_some(Made::HostKey)
    }

    fn known_of(path: &str, secret: &str) -> Option<String> {
        if path == "ssh_host_key" { ssh::public_key(secret) } else { None }
    }

    // === adopted ===

    fn adopted(id: &str, found: &[u8]) -> Result<Adopted, String> {
        adopt::adopted(id, found)
    }

    // === settled ===

    fn settled(object: &Object<Self>) -> &'static str {
        const WORDS: [&str; 6] = ["running", "stopped", "starting", "stopping", "paused", "crashed"];
        if object.status.away {
            return "unknown";
        }
        WORDS.into_iter().find(|word| *word == object.status.power).unwrap_or("pending")
    }

    // === show ===

    fn show(object: &mut Object<Self>) {
        let claims = &object.claims;
        let text = |key: &str| claims.text(key).map(str::to_owned);
        let nics = object.spec.nics.iter().map(|(name, nic)| {
            let given = |what: &str| text(&format!("nics.{name}.{what}")).unwrap_or_default();
            let network = nic.network.clone().unwrap_or_default();
            (name.clone(), InstanceNicStatus { address: given("address"), mac: given("mac"), network })
        });
        object.status.nics = nics.collect();
        object.status.node = text("node");
        object.status.root_disk = text("root");
        object.status.ssh_host_certificate = text(ssh::HOST_CERTIFICATE);
        object.status.ssh_host_key = ssh_host_key(object).map(str::to_owned);
    }
}

/// The public half of the key of its SSH server.
fn ssh_host_key(object: &Object<Instance>) -> Option<&str> {
    object.claims.known(object.spec.ssh_host_key.as_deref()?)
}

fn nic_field(name: &str) -> String {
    format!("spec.nics.{name}.network")
}

fn disk_field(name: &str) -> String {
    format!("spec.disks.{name}.disk")
}

fn group_field(index: usize) -> String {
    format!("spec.placement.groups.{index}")
}

/// The field that names the image of the root disk.
fn image_field(spec: &InstanceSpec) -> &'static str {
    if spec.image.is_some() { "spec.image" } else { "spec.root.image" }
}

/// Processors and memory: the instance's own, or those of its machine type.
fn size(spec: &InstanceSpec, facts: &Facts) -> (u32, u64) {
    let machine_type = facts.get("spec.machine_type");
    let vcpus = spec.vcpus.or_else(|| machine_type?.spec("/vcpus")).unwrap_or(0);
    let memory = spec.memory_bytes.or_else(|| machine_type?.spec("/memory_bytes")).unwrap_or(0);
    (vcpus, memory)
}

/// Size of the root disk: its own, or that of its image.
fn root_size(spec: &InstanceSpec, facts: &Facts) -> Option<u64> {
    spec.root.size_bytes.or_else(|| facts.get(image_field(spec))?.status("/virtual_size_bytes"))
}

/// Where a disk that some node already holds, in a pool of its own, has to be used.
fn home<'a>(name: &str, facts: &'a Facts) -> Option<&'a str> {
    let disk = facts.get(&disk_field(name))?;
    if is_shared(disk) { None } else { disk.held_on.first().map(String::as_str) }
}

/// Whether a disk is in a pool that all nodes have.
fn is_shared(disk: &Fact) -> bool {
    disk.claims.get("pool").and_then(|pool| pool.get("shared")?.as_bool()).unwrap_or(false)
}
