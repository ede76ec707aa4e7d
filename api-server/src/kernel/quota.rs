//! Quotas: what a tenant may use of each quantity, and what an object uses of them. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{ClaimKind, Meta, Plan, Registry, Scope};

/// Amounts by quantity.
pub type Amounts = BTreeMap<String, u64>;

/// Quantities that are no count of objects.
pub const MEASURES: [&str; 4] = ["addresses", "disk_bytes", "memory_bytes", "vcpus"];

/// A limit that was met.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exceeded {
    /// `vcpus`.
    pub quantity: String,
    /// What the tenant may use.
    pub limit: u64,
    /// What it uses.
    pub used: u64,
    /// What was wanted on top.
    pub wanted: u64,
}

/// All quantities: the measures, and a count for each kind that tenants own.
pub fn quantities(registry: &Registry) -> Vec<String> {
    let owned = registry.all().iter().filter(|kind| kind.meta().scope != Scope::Operator);
    let mut all: Vec<String> = owned.map(|kind| count_of(kind.meta())).collect();
    all.extend(MEASURES.map(str::to_owned));
    all.sort();
    all
}

/// What objects of a kind are counted as.
fn count_of(meta: &Meta) -> String {
    meta.plural.replace('-', "_")
}

/// What an object uses whose plan this is: itself, and what it claims.
pub fn amounts(meta: &Meta, plan: &Plan) -> Amounts {
    let mut all = Amounts::from([(count_of(meta), 1)]);
    let mut add = |quantity: &str, amount: u64| {
        if amount > 0 {
            let sum = all.entry(quantity.to_owned()).or_default();
            *sum = sum.saturating_add(amount);
        }
    };
    for claim in &plan.claims {
        match &claim.what {
            ClaimKind::Address { .. } => add("addresses", 1),
            ClaimKind::Placement(needs) => {
                add("vcpus", u64::from(needs.vcpus));
                add("memory_bytes", needs.memory_bytes);
            }
            ClaimKind::Mac { .. }
            | ClaimKind::Prefix { .. }
            | ClaimKind::Exclusive { .. }
            | ClaimKind::Port { .. }
            | ClaimKind::SshHost { .. }
            | ClaimKind::SshUsers => {}
        }
    }
    add("disk_bytes", plan.disk_bytes);
    all
}

/// The limits that were met, in words.
pub fn words(exceeded: &[Exceeded]) -> String {
    let one =
        |e: &Exceeded| format!("{} more {} wanted, {} of {} used", e.wanted, e.quantity, e.used, e.limit);
    let all: Vec<String> = exceeded.iter().map(one).collect();
    format!(
        "the tenant's quota is exceeded ({}): take something away, or ask an operator to raise `spec.quota` of the tenant",
        all.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::place::Needs;
    use crate::kernel::{Claim, Held, NameRule};

    const META: Meta = Meta {
        kind: "ssh-key",
        plural: "ssh-keys",
        prefix: "key",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "",
        actions: &[],
        fields: &[],
        held: Held::Never,
        private: &[],
    };

    #[test]
    fn an_object_uses_itself_and_what_it_claims() {
        let needs = Needs { vcpus: 2, memory_bytes: 7, disk_bytes: 9, ..Needs::default() };
        let address = || ClaimKind::Address {
            network: "net_1".into(),
            cidr: "10.0.0.0/24".parse().unwrap(),
            reserved: Vec::new(),
            wanted: None,
        };
        let claims =
            [ClaimKind::Placement(needs), address(), address(), ClaimKind::Mac { network: "n".into() }];
        let claims = claims.into_iter().map(|what| Claim::new("k", "f", what)).collect();
        let all = amounts(&META, &Plan { claims, disk_bytes: 5, ..Plan::default() });
        let pairs: Vec<_> = all.iter().map(|(quantity, amount)| format!("{quantity}={amount}")).collect();
        assert_eq!(pairs, ["addresses=2", "disk_bytes=5", "memory_bytes=7", "ssh_keys=1", "vcpus=2"]);
    }
}
