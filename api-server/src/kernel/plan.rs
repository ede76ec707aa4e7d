//! What a kind wants done: claims, which the store resolves in the transaction of the request itself, and
//! steps, from a small closed set, which the job stores and never recomputes.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::place::Needs;
use super::secret;
use super::{FieldError, Timestamp};

/// What was given to an object, by the keys of its claims (`nics.lan.address`, `node`), and the values that
/// plans keep beside them (`boot_epoch`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims(pub Map<String, Value>);

/// Something that exists once and is wanted by an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Where the result is kept in the claims.
    pub key: String,
    /// The field that a refusal names.
    pub field: String,
    /// What is wanted.
    pub what: ClaimKind,
}

/// The things that exist once.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimKind {
    /// An address of a network: the wanted one, or a random free one. Result: "10.0.0.5".
    Address {
        /// Id of the network.
        network: String,
        /// Its range.
        cidr: Ipv4Net,
        /// Never given: the gateway.
        reserved: Vec<Ipv4Addr>,
        /// This one, or any.
        wanted: Option<Ipv4Addr>,
    },
    /// A MAC address unique in a network. Result: "52:54:00:..".
    Mac {
        /// Id of the network.
        network: String,
    },
    /// A range of addresses that overlaps no other of the same scope. Result: the range, "10.0.0.0/24".
    Prefix {
        /// Whose ranges must not overlap: a tenant.
        scope: String,
        /// This range, or a free one.
        wanted: Option<IpNet>,
        /// Where to look for a free one.
        within: IpNet,
        /// How long its prefix is then.
        length: u8,
        /// Which one of those that are free.
        pick: Pick,
    },
    /// A UDP port of the node that a claim before this one has taken. Result: the port.
    Port {
        /// This one, or the lowest that is free from here on.
        wanted: Option<u16>,
        /// Where to begin.
        from: u16,
    },
    /// A value that only one object of a scope may hold. Result: the value.
    Exclusive {
        /// `attached-disk`.
        scope: String,
        /// Id of the disk.
        value: String,
        /// What to say when another one has it.
        taken: String,
    },
    /// That its tenant says whose key this is. Result: a host's certificate, for its id, these names and its addresses.
    SshHost {
        /// Its public key, as OpenSSH writes it.
        public_key: String,
        /// What it is called.
        names: Vec<String>,
    },
    /// Who says which users it lets in. Result: the public key of its tenant's authority.
    SshUsers,
    /// Room on a node. Result: the node's id; `placement_epoch` beside it.
    Placement(Needs),
}

/// Which free range is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Any: two clouds that meet later clash less often.
    Any,
    /// The next one: what is given back is given again as late as can be.
    Next,
}

/// The scope of moments at which something expires; and where they are kept when they have passed.
pub const EXPIRY: &str = "expiry";
/// See `EXPIRY`.
pub const EXPIRED: &str = "expired";

/// The value of a lease on a moment: it sorts by time, and the id makes it the object's own.
pub fn moment(at: Timestamp, id: &str) -> String {
    format!("{:020}:{id}", at.0.max(0))
}

/// Of which moment such a value is.
pub fn moment_of(value: &str) -> Option<Timestamp> {
    value.split(':').next()?.parse().ok().map(Timestamp)
}

/// How many ranges of this length there are within a range.
pub fn ranges(within: IpNet, length: u8) -> u128 {
    1_u128.checked_shl(u32::from(length.saturating_sub(within.prefix_len()))).unwrap_or(u128::MAX)
}

/// An object that is made with, and owned by, the planned one.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// Under this key the child's id is kept in the claims.
    pub key: String,
    /// Its kind.
    pub kind: &'static str,
    /// Its name; made free with a number if it is taken.
    pub name: String,
    /// Its spec.
    pub spec: Value,
    /// Prefix of the fields that its errors are told under: `spec.root`.
    pub field: String,
}

/// Of whom a step speaks. The store puts ids in the place of `Ref` and `Child` before it keeps the step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The object of the job.
    This,
    /// The object that this field names.
    Ref(String),
    /// The child under this key.
    Child(String),
    /// The object of this id.
    Id(String),
}

/// One step of a job. Every effect can be repeated, and has an undo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Step {
    /// Order the object from the node in the claims of the job's object. Undo: order its removal, if it was
    /// made for this object.
    Assign {
        /// Whom.
        who: Who,
    },
    /// Order the object anew, in its present generation, wherever it is held.
    Refresh {
        /// Whom.
        who: Who,
    },
    /// Order anew, wherever it is held, whatever refers to the object.
    Tell {
        /// To whom.
        who: Who,
    },
    /// Wait until the job's node (or, for `Refresh`, every holder) reports it applied.
    AwaitApplied {
        /// Whom.
        who: Who,
        /// After so many seconds the step has failed.
        deadline_seconds: u32,
    },
    /// Wait until the status of the job's object has a value there.
    AwaitStatus {
        /// JSON pointer into the status.
        pointer: String,
        /// After so many seconds the step has failed.
        deadline_seconds: u32,
        /// What to say then.
        missing: String,
    },
    /// Order its removal wherever it is held.
    Unassign {
        /// Whom.
        who: Who,
    },
    /// Wait until no node holds it any more.
    AwaitGone {
        /// Whom.
        who: Who,
    },
    /// Wait until these jobs have ended, whatever they are about.
    AwaitJobs {
        /// Their ids.
        jobs: Vec<String>,
    },
    /// Wait until the realm of the job's object, a tenant, was made at the identity provider, or deleted there.
    Realm {
        /// What it is called there.
        name: String,
        /// It is deleted, if it is one that was made here.
        gone: bool,
        /// After so many seconds the step has failed.
        deadline_seconds: u32,
    },
    /// Take away all that the job's object, a tenant, still has, and then its name.
    Empty,
    /// Give back all claims; the object is gone.
    Release,
}

/// What a kind wants done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// A new spec (actions).
    pub spec: Option<Value>,
    /// All claims of the object.
    pub claims: Vec<Claim>,
    /// Values to keep in the claims.
    pub values: Map<String, Value>,
    /// Bytes of disk that it is counted as using, beyond what it claims.
    pub disk_bytes: u64,
    /// What is made with it.
    pub children: Vec<Child>,
    /// What is to be done. None: done at once, without a job.
    pub steps: Vec<Step>,
    /// Why this change cannot be: what `validate` cannot see, because it compares old and new.
    pub errors: Vec<FieldError>,
}

/// What a node is to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// An encoded `rhyzome.v1.OrderBody`.
    pub body: Vec<u8>,
    /// Ids of what must be held there before.
    pub needs: Vec<String>,
}

// === impl Claims ===

impl Claims {
    /// The text under a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    /// What everybody may know of the secret that this marker stands for.
    pub fn known(&self, marker: &str) -> Option<&str> {
        self.text(&secret::known_key(marker))
    }

    /// The number under a key; 0 if there is none.
    pub fn number(&self, key: &str) -> u64 {
        self.0.get(key).and_then(Value::as_u64).unwrap_or(0)
    }
}

// === impl Claim ===

impl ClaimKind {
    /// This very range, among those of this scope.
    pub fn this_range(scope: &str, range: IpNet) -> ClaimKind {
        let (scope, length) = (scope.to_owned(), range.prefix_len());
        ClaimKind::Prefix { scope, wanted: Some(range), within: range, length, pick: Pick::Next }
    }
}

impl Claim {
    /// `field` wants this; the result is kept under `key`.
    pub fn new(key: impl Into<String>, field: impl Into<String>, what: ClaimKind) -> Claim {
        Claim { key: key.into(), field: field.into(), what }
    }

    /// `field` says when the object expires: from then on its status has `expired_at`, with this moment in it.
    pub fn expiry(field: &str, id: &str, at: Timestamp) -> Claim {
        let value = moment(at, id);
        let what = ClaimKind::Exclusive { scope: EXPIRY.into(), value, taken: "is taken".into() };
        Claim::new("expires.at", field, what)
    }
}

// === impl Step ===

impl Step {
    /// Order the object of the job, and wait for at most so many seconds until its node has made it so.
    pub fn apply(deadline_seconds: u32) -> [Step; 2] {
        [Step::Assign { who: Who::This }, Step::AwaitApplied { who: Who::This, deadline_seconds }]
    }
}

// === impl Plan ===

impl Plan {
    /// These steps and nothing else.
    pub fn steps(steps: impl IntoIterator<Item = Step>) -> Plan {
        Plan { steps: steps.into_iter().collect(), ..Plan::default() }
    }

    /// Nothing but giving back what was claimed: for kinds that no node holds.
    pub fn release() -> Plan {
        Plan::steps([Step::Release])
    }
}
