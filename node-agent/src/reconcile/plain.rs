//! Plain kinds: what one driver does by itself.

use super::{Action, Decision, View, no_body, obstacle};
use crate::plain::{ObservedPlain, Ordered};
use rhyzome_proto::v1::Order;
use std::collections::BTreeMap;

pub(super) fn decide(
    view: View<'_>,
    order: &Order,
    kind: &'static str,
    here: &BTreeMap<String, ObservedPlain>,
) -> Decision {
    let seen = here.get(&order.object_id);
    if order.remove {
        return Decision::Do(seen.map_or(Action::Forget, |_| Action::RemovePlain(kind)));
    }
    let is_over = |seen: &ObservedPlain| seen.until_ms.is_some_and(|until| until <= view.now_ms);
    let body = Ordered::body_of(order);
    if seen.is_some_and(|seen| seen.in_force.is_some() && seen.in_force.as_ref() == body && !is_over(seen)) {
        return Decision::Held;
    }
    let Some(ordered) = Ordered::of(order) else { return no_body(order) };
    match order.needs.iter().find_map(|id| obstacle(view, id)) {
        Some(reason) => Decision::wait(reason),
        None => Decision::Do(Action::ApplyPlain(kind, ordered)),
    }
}

/// True if it is here exactly as ordered.
pub(super) fn is_in_force(view: View<'_>, order: &Order, body: &[u8]) -> bool {
    let here = view.world.plain.get(order.kind.as_str());
    let seen = here.and_then(|here| here.get(&order.object_id));
    seen.is_some_and(|seen| seen.in_force.as_deref() == Some(body))
}
