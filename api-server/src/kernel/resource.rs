//! The one interface behind every kind: validate, create, update, remove, load, over a `ResourceCore`.
//!
//! A kind says what it *is* and plans what is to be done; everything else (ids, names, pages, ETags,
//! history, jobs, OpenAPI, CLI verbs) is done once, around it. All of it is pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use super::adopt::Adopted;
use super::secret::{self, Made};
use super::{Claims, Error, Facts, FieldError, Order, Plan, Ref, Stored, Timestamp};

/// What every resource has, whatever its kind.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ResourceCore {
    /// `inst_...`: unique, never changes, sorts by time of creation.
    pub id: String,
    /// Singular, kebab-case.
    pub kind: String,
    /// Empty for what operators own.
    pub tenant: String,
    /// Unique among the living of its kind and tenant.
    pub name: String,
    /// Filters look at these.
    pub tags: BTreeMap<String, String>,
    /// The customer's own JSON, opaque.
    pub metadata: Value,
    /// Rises with each change of spec.
    pub generation: i64,
    /// Rises with each write by a user: the ETag.
    pub version: i64,
    /// Rises with each write of status.
    pub status_version: i64,
    /// See `phase.rs`.
    pub phase: String,
    /// Refuses deletion while true.
    pub protected: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When a user last wrote it.
    pub updated_at: Timestamp,
    /// When deletion was acknowledged.
    pub deleted_at: Option<Timestamp>,
    /// The last job on it.
    pub job: Option<String>,
    /// Id of the user who made it; empty if that was no user.
    pub owner: String,
}

/// Who owns objects of a kind, and so where its paths are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `/v1/tenants/{tenant}/{plural}`.
    Tenant,
    /// `/v1/{plural}`, operators only.
    Operator,
    /// A tenant's own, or global (`/v1/{plural}`, made by operators, usable by all).
    Both,
    /// A tenant's own, or operators' own (`/v1/{plural}`), which no tenant sees.
    Apart,
}

/// How objects of a kind may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// `[a-z0-9-]`, at most 63, no hyphen at the ends.
    Label,
    /// `[a-z0-9]+`, at most 63: tenants.
    Alphanumeric,
}

/// What it means that a node holds an object of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// No node ever does.
    Never,
    /// It lets go when nothing there needs it any more: networks.
    WhileNeeded,
    /// A copy of what is elsewhere too, kept until it is deleted: images.
    Copy,
    /// What is there is nowhere else: disks, instances. The node cannot be deleted meanwhile.
    Alone,
    /// One node holds it, and what that node tells of it (`Resource::told`) is ordered from the nodes of all others of
    /// its kind that name the same object: members of a mesh. The order is the same on each.
    Among {
        /// The field below `spec` that names what they have in common.
        by: &'static str,
    },
}

/// A verb beyond create, update and delete.
#[derive(Clone, Copy, Debug)]
pub struct Action {
    /// `stop`.
    pub verb: &'static str,
    /// The phase while it runs: `stopping`.
    pub doing: &'static str,
    /// One line for help texts and OpenAPI.
    pub about: &'static str,
}

/// When a change of a field takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// At once.
    Mutable,
    /// At the next stop and start; pending until then.
    NeedsStop,
    /// Never.
    Immutable,
}

/// What a kind says of itself, once.
#[derive(Debug)]
pub struct Meta {
    /// Singular, kebab-case: `machine-type`.
    pub kind: &'static str,
    /// Plural, kebab-case, as in paths: `machine-types`.
    pub plural: &'static str,
    /// Of its ids: `mt`.
    pub prefix: &'static str,
    /// Who owns it.
    pub scope: Scope,
    /// How it may be called.
    pub name: NameRule,
    /// One line for help texts and OpenAPI.
    pub about: &'static str,
    /// Verbs beyond the usual.
    pub actions: &'static [Action],
    /// Fields below `spec` that are not simply mutable; `*` stands for a map's key.
    pub fields: &'static [(&'static str, Change)],
    /// What it means that a node holds one.
    pub held: Held,
    /// Paths below `spec` whose values are shown only to those who may change the object.
    pub private: &'static [&'static str],
}

/// A resource as its kind sees it.
#[derive(Clone, Debug)]
pub struct Object<R: Resource> {
    /// What every resource has.
    pub core: ResourceCore,
    /// What is wanted.
    pub spec: R::Spec,
    /// What was given to it: addresses, MACs, node.
    pub claims: Claims,
    /// What was last reported.
    pub status: R::Status,
}

/// What an action was called with.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `stop`.
    pub verb: String,
    /// True for `mode: hard`.
    pub hard: bool,
    /// How long the graceful way may take.
    pub deadline_seconds: Option<u32>,
    /// What was chosen beside that, by field; the first word of a `Choice` is chosen by saying nothing.
    pub choices: BTreeMap<String, String>,
}

/// What one of a kind's verbs leaves to whoever says it.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The verb.
    pub verb: &'static str,
    /// The field of the body.
    pub field: &'static str,
    /// One line for help texts and OpenAPI.
    pub about: &'static str,
    /// What it may be; the first is what it is if nothing is said.
    pub words: &'static [&'static str],
}

/// A kind of resource.
pub trait Resource: Sized + Send + Sync + 'static {
    /// What it says of itself.
    const META: Meta;
    /// What its verbs leave to whoever says them.
    const CHOICES: &'static [Choice] = &[];
    /// What is wanted. `#[serde(deny_unknown_fields)]`: a field is accepted and applied, or refused.
    type Spec: Serialize + DeserializeOwned + utoipa::ToSchema + Clone + Send + Sync;
    /// What is reported, and what was claimed, as users see it.
    type Status: Serialize + DeserializeOwned + utoipa::ToSchema + Default + Clone + Send + Sync;

    /// Whom the spec names. Called on specs that are not yet valid: must not panic.
    fn refs(_spec: &Self::Spec) -> Vec<Ref> {
        Vec::new()
    }

    /// *All* that is wrong. Names that were not found, immutable fields that changed and clashes of claims
    /// are told by the front.
    fn validate(object: &Object<Self>, facts: &Facts, creating: bool) -> Vec<FieldError>;

    /// What is to be done to make it. Also asked for specs that `validate` refused, so that clashes of
    /// claims are told with the other errors: leaves out what cannot be said, must not panic.
    fn create(object: &Object<Self>, facts: &Facts) -> Plan;

    /// What is to be done to change `old` into `new`. Its claims are *all* claims of `new`.
    fn update(old: &Object<Self>, new: &Object<Self>, facts: &Facts) -> Plan;

    /// What is to be done to take it away. The last step is `Release`.
    fn remove(object: &Object<Self>) -> Plan;

    /// The typed resource from its stored form.
    fn load(stored: &Stored) -> Result<Object<Self>, serde_json::Error> {
        let status = if stored.status.is_null() {
            Self::Status::default()
        } else {
            Self::Status::deserialize(&stored.status)?
        };
        Ok(Object {
            core: stored.core.clone(),
            spec: Self::Spec::deserialize(&stored.spec)?,
            claims: Claims(stored.claims.clone()),
            status,
        })
    }

    /// What an action does: a new spec, values to keep, steps.
    fn act(_object: &Object<Self>, call: &Call) -> Result<Plan, Error> {
        Err(Error::field("action", format!("there is no action `{}` on this kind", call.verb)))
    }

    /// The action that a change of the spec amounts to, if it is one: then its job is that action's, with the
    /// same phase and the same place in the queue.
    fn amounts_to(_old: &Object<Self>, _new: &Object<Self>) -> Option<&'static str> {
        None
    }

    /// What a node is to hold for it; `None` for kinds that no node holds.
    fn order(_object: &Object<Self>, _facts: &Facts) -> Option<Order> {
        None
    }

    /// How a node's report (an encoded `rhyzome.v1.Report`) changes the status.
    fn observe(_object: &mut Object<Self>, _report: &[u8]) {}

    /// For a kind that is held `Among` others: what these have to know of it, as its node has told; `None` as long as
    /// there is nothing. Whenever it becomes another, they are told.
    fn told(_object: &Object<Self>) -> Option<String> {
        None
    }

    /// The phase when no job is at work on it.
    fn settled(_object: &Object<Self>) -> &'static str {
        "ready"
    }

    /// A secret for a field (its path below `spec`) that was left out. `None`: the field stays empty. A field that
    /// holds secrets is marked by `#[schema(write_only)]`, nothing else.
    fn make_secret(_path: &str, _random: [u8; 32]) -> Option<Made> {
        None
    }

    /// What everybody may know of a secret: the public half of a private key. Kept in the claims, under the
    /// `known_key` of its marker.
    fn known_of(_path: &str, _secret: &str) -> Option<String> {
        None
    }

    /// Ids of the secrets whose markers stand in an order of it. A kind that writes there what users say freely finds its
    /// own ones only: what looks like a marker need not be one.
    fn sealed_in(body: &[u8]) -> BTreeSet<String> {
        secret::ids_within(body)
    }

    /// What a record of an object is that a node holds and nobody here knows, from what the node says of it (an encoded
    /// message of the wire); or why none can be made.
    fn adopted(_id: &str, _found: &[u8]) -> Result<Adopted, String> {
        Err("objects of this kind cannot be adopted".to_owned())
    }

    /// Puts into the status what users see but nobody reports: claimed addresses, pending fields.
    fn show(_object: &mut Object<Self>) {}
}
