//! THE REGISTRY: every kind, one line each. Routes, document, CLI verbs and contract tests follow from it.
//!
//! One file per kind. A kind imports `kernel` and its own wire messages, nothing else; never another kind:
//! what it must know of others arrives as `Facts`.

mod binding;
mod disk;
mod image;
mod instance;
mod machine_type;
mod member;
mod mesh;
mod mesh_member;
mod network;
mod node;
mod placement_group;
mod role;
mod snapshot;
mod ssh_key;
mod storage_pool;
mod tenant;
#[cfg(test)]
mod testing;
mod token;
mod user;
mod vpn_network;
mod vpn_pool;
mod webhook;
mod wireguard_peer;
mod wireguard_server;

use serde_json::{Value, json};

use crate::kernel::{Registry, erased};

/// All kinds, in the order in which people meet them.
pub fn registry() -> Registry {
    Registry::new(vec![
        erased::<tenant::Tenant>(),
        erased::<node::Node>(),
        erased::<machine_type::MachineType>(),
        erased::<storage_pool::StoragePool>(),
        erased::<image::Image>(),
        erased::<network::Network>(),
        erased::<disk::Disk>(),
        // Before instances: a tenant is emptied in this order, and a disk with snapshots stays.
        erased::<snapshot::Snapshot>(),
        erased::<instance::Instance>(),
        erased::<ssh_key::SshKey>(),
        erased::<placement_group::PlacementGroup>(),
        erased::<webhook::Webhook>(),
        erased::<vpn_pool::VpnPool>(),
        erased::<vpn_network::VpnNetwork>(),
        erased::<wireguard_server::WireguardServer>(),
        erased::<wireguard_peer::WireguardPeer>(),
        erased::<mesh::Mesh>(),
        erased::<mesh_member::MeshMember>(),
        erased::<user::User>(),
        erased::<member::Member>(),
        erased::<role::Role>(),
        erased::<binding::Binding>(),
        erased::<token::Token>(),
    ])
}

/// What a first start makes: kind, name, spec.
pub fn seeds() -> Vec<(&'static str, &'static str, Value)> {
    const MIB: u64 = 1 << 20;
    vec![
        ("machine-type", "small", json!({"vcpus": 1, "memory_bytes": 256 * MIB})),
        ("machine-type", "medium", json!({"vcpus": 2, "memory_bytes": 2048 * MIB})),
        ("machine-type", "large", json!({"vcpus": 4, "memory_bytes": 8192 * MIB})),
        ("storage-pool", "local", json!({"driver": "dir"})),
        ("tenant", "default", json!({})),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::kernel::quota::quantities;
    use crate::kernel::{Facts, Stored, name};

    #[test]
    fn words_of_the_registry_are_unique() {
        let registry = registry();
        let mut seen = BTreeSet::new();
        for kind in registry.all() {
            let meta = kind.meta();
            for word in [("path", meta.kind), ("path", meta.plural), ("id", meta.prefix)] {
                assert!(seen.insert(word), "{word:?} is said twice");
            }
        }
    }

    #[test]
    fn seeds_are_valid() {
        for (kind, wanted, spec) in seeds() {
            let kind = registry().get(kind).unwrap();
            assert_eq!(name::refuse(wanted, kind.meta().name), None);
            let spec = kind.complete(&spec).unwrap();
            let object = Stored { spec, ..Stored::default() };
            assert_eq!(kind.validate(&object, &Facts::default(), true), [], "{wanted}");
        }
    }

    #[test]
    fn every_kind_refuses_unknown_fields_and_gives_an_example() {
        for kind in registry().all() {
            let said = kind.complete(&json!({"surely_unknown": 1})).unwrap_err();
            assert!(said.reason.contains("unknown field"), "{}: {}", kind.meta().kind, said.reason);
            let schemas = kind.schemas();
            let schema = serde_json::to_value(&schemas.spec.1).unwrap();
            assert_eq!(schema["additionalProperties"], json!(false), "{}", kind.meta().kind);
            let example = schema["example"].clone();
            assert!(example.is_object(), "{} has no example: {schema}", kind.meta().kind);
            kind.complete(&example).unwrap();
            for (part, _) in schemas.parts {
                let family = crate::kernel::kind::pascal(kind.meta().kind);
                assert!(part.starts_with(&family), "`{part}` could clash with a part of another kind");
            }
        }
    }

    #[test]
    fn every_quantity_can_be_limited() {
        let tenant = registry().get("tenant").unwrap().schemas();
        let limits = tenant.parts.iter().find(|(name, _)| name == "TenantQuota").unwrap();
        let limits = serde_json::to_value(&limits.1).unwrap();
        let mut known: Vec<_> = limits["properties"].as_object().unwrap().keys().cloned().collect();
        known.sort();
        assert_eq!(known, quantities(&registry()), "TenantQuota has a field for each quantity and no other");
    }

    #[test]
    fn fields_that_are_not_simply_mutable_exist() {
        for kind in registry().all() {
            let schema = serde_json::to_value(&kind.schemas().spec.1).unwrap();
            let named =
                kind.meta().fields.iter().map(|(field, _)| *field).chain(kind.meta().private.iter().copied());
            for field in named {
                let known = schema["properties"].get(field).is_some();
                assert!(known, "{} has no field `{field}`", kind.meta().kind);
            }
        }
    }
}
