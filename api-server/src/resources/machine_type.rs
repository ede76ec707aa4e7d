//! A machine type: how many processors and how much memory an instance gets.
//!
//! Its life: there at once, never changes (make another one instead), cannot be deleted while an instance
//! uses it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::{Change, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope};

/// A machine type.
pub struct MachineType;

const MIB: u64 = 1 << 20;
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

// === spec ===

/// What an instance of this type gets.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"vcpus": 2, "memory_bytes": 2147483648_u64}))]
pub struct MachineTypeSpec {
    /// Virtual processors.
    #[schema(minimum = 1, maximum = 256)]
    pub vcpus: u32,
    /// Memory, a multiple of 1 MiB.
    #[schema(minimum = 67108864, maximum = 1099511627776_u64)]
    pub memory_bytes: u64,
    /// `x86_64` or `aarch64`: instances go to nodes of this architecture.
    #[serde(default = "x86_64")]
    #[schema(default = "x86_64")]
    pub architecture: String,
}

fn x86_64() -> String {
    ARCHITECTURES[0].to_owned()
}

// === status ===

/// Nothing is reported of a machine type.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MachineTypeStatus {}

impl Resource for MachineType {
    const META: Meta = Meta {
        kind: "machine-type",
        plural: "machine-types",
        prefix: "mt",
        scope: Scope::Operator,
        name: NameRule::Label,
        about: "How many processors and how much memory an instance gets",
        actions: &[],
        fields: &[
            ("vcpus", Change::Immutable),
            ("memory_bytes", Change::Immutable),
            ("architecture", Change::Immutable),
        ],
        held: Held::Never,
        private: &[],
    };
    type Spec = MachineTypeSpec;
    type Status = MachineTypeStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        if !(1..=256).contains(&spec.vcpus) {
            errors.push(FieldError::new("spec.vcpus", "must be 1 to 256"));
        }
        if !(64 * MIB..=MIB * MIB).contains(&spec.memory_bytes) || !spec.memory_bytes.is_multiple_of(MIB) {
            let reason = "must be 64 MiB (67108864) to 1 TiB (1099511627776), a multiple of 1 MiB (1048576)";
            errors.push(FieldError::new("spec.memory_bytes", reason));
        }
        if !ARCHITECTURES.contains(&spec.architecture.as_str()) {
            let reason = format!("must be one of {}", ARCHITECTURES.join(", "));
            errors.push(FieldError::new("spec.architecture", reason));
        }
        errors
    }

    // === create, update, remove ===

    fn create(_object: &Object<Self>, _facts: &Facts) -> Plan {
        Plan::default()
    }

    fn update(_old: &Object<Self>, _new: &Object<Self>, _facts: &Facts) -> Plan {
        Plan::default()
    }

    fn remove(_object: &Object<Self>) -> Plan {
        Plan::release()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields, object};

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let bad = json!({"vcpus": 0, "memory_bytes": 67108865, "architecture": "vax"});
        let said = complaints::<MachineType>(bad, &Facts::default());
        assert_eq!(fields(&said), ["spec.vcpus", "spec.memory_bytes", "spec.architecture"]);
    }

    #[test]
    fn memory_has_a_floor_and_a_ceiling() {
        for (bytes, good) in
            [(0, false), (63 * MIB, false), (64 * MIB, true), (MIB * MIB, true), (1 << 60, false)]
        {
            let said =
                complaints::<MachineType>(json!({"vcpus": 1, "memory_bytes": bytes}), &Facts::default());
            assert_eq!(said.is_empty(), good, "{bytes}");
        }
    }

    #[test]
    fn the_architecture_is_filled_in() {
        let made = object::<MachineType>(json!({"vcpus": 1, "memory_bytes": 256 * MIB}));
        assert_eq!(made.spec.architecture, "x86_64");
        assert_eq!(MachineType::remove(&made), Plan::release());
    }
}
