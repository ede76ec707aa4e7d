//! Records of what a node holds already.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// What a record is made of: the object is there, and nothing is to be done for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adopted {
    /// The id that it has on its node.
    pub id: String,
    /// Whose it was; empty if that is not known.
    pub tenant: String,
    /// What it was called; empty if that is not known.
    pub name: String,
    /// What its node was ordered last: the record's is higher, so that its orders count.
    pub generation: i64,
    /// Likewise.
    pub placement_epoch: i64,
    /// What it is, as far as its node can say.
    pub spec: Value,
    /// What it has: addresses, MACs.
    pub claims: Map<String, Value>,
    /// Values of its plan that are to be what they were: `boot_epoch`.
    pub values: Map<String, Value>,
    /// What was made with it, by the keys of its children.
    pub children: BTreeMap<String, Adopted>,
}
