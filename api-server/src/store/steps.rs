//! From the steps that a kind plans to those that a job keeps: ids in the place of fields and children.

use crate::kernel::{Facts, Step, Stored, Who};

/// The steps with ids. A step about someone whom the spec does not name falls out.
pub(super) fn concrete(object: &Stored, facts: &Facts, steps: Vec<Step>) -> Vec<Step> {
    steps.into_iter().filter_map(|step| one(object, facts, step)).collect()
}

fn one(object: &Stored, facts: &Facts, step: Step) -> Option<Step> {
    let id = |who: Who| match who {
        Who::This => Some(Who::This),
        Who::Id(id) => Some(Who::Id(id)),
        Who::Ref(field) => facts.get(&field).map(|fact| Who::Id(fact.id.clone())),
        Who::Child(key) => object.claims.get(&key)?.as_str().map(|id| Who::Id(id.to_owned())),
    };
    Some(match step {
        Step::Assign { who } => Step::Assign { who: id(who)? },
        Step::Refresh { who } => Step::Refresh { who: id(who)? },
        Step::Tell { who } => Step::Tell { who: id(who)? },
        Step::AwaitApplied { who, deadline_seconds } => {
            Step::AwaitApplied { who: id(who)?, deadline_seconds }
        }
        Step::Unassign { who } => Step::Unassign { who: id(who)? },
        Step::AwaitGone { who } => Step::AwaitGone { who: id(who)? },
        step @ (Step::AwaitStatus { .. }
        | Step::AwaitJobs { .. }
        | Step::Realm { .. }
        | Step::Empty
        | Step::Release) => step,
    })
}
