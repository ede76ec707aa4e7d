//! What is to be decided anew. A node holds thousands of plain things, and mostly one of them changes: the others are
//! not asked again because of it. Whatever depends on more than a plain thing and what it needs is decided together,
//! and so is everything now and then.

use super::Owner;
use crate::reconcile::{Decision, Orders, View, plan, plan_of};
use rhyzome_proto::v1::Order;
use std::collections::{BTreeMap, BTreeSet};

/// Objects whose decisions may be others now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// Any.
    All,
    /// These.
    Only(BTreeSet<String>),
}

impl Default for Stale {
    fn default() -> Self {
        Stale::Only(BTreeSet::new())
    }
}

/// Who waits for whom: by what is needed, who needs it.
#[derive(Debug, Default)]
pub(super) struct Needs(BTreeMap<String, BTreeSet<String>>);

impl Needs {
    pub fn of(orders: &Orders) -> Self {
        let mut needs = Self::default();
        orders.values().for_each(|order| needs.add(order));
        needs
    }

    pub fn add(&mut self, order: &Order) {
        for needed in &order.needs {
            self.0.entry(needed.clone()).or_default().insert(order.object_id.clone());
        }
    }

    pub fn remove(&mut self, order: &Order) {
        for needed in &order.needs {
            if let Some(by) = self.0.get_mut(needed) {
                by.remove(&order.object_id);
                if by.is_empty() {
                    self.0.remove(needed);
                }
            }
        }
    }

    fn by(&self, id: &str) -> impl Iterator<Item = &String> {
        self.0.get(id).into_iter().flatten()
    }
}

impl Owner {
    /// Something of this object may have changed: it is decided anew, and whoever needs it.
    pub(super) fn touched(&mut self, id: &str) {
        let plain = &self.known.world.plain;
        let is_plain =
            |id: &str| self.orders.get(id).is_some_and(|order| plain.contains_key(order.kind.as_str()));
        let Stale::Only(stale) = &mut self.stale else { return };
        if is_plain(id) && self.needs.by(id).all(|by| is_plain(by)) {
            stale.insert(id.to_owned());
            stale.extend(self.needs.by(id).cloned());
        } else {
            self.stale = Stale::All;
        }
    }

    /// An order came, or came anew.
    pub(super) fn ordered(&mut self, id: &str, order: Order) {
        if let Some(before) = self.orders.get(id) {
            self.needs.remove(before);
        }
        self.needs.add(&order);
        self.orders.insert(id.to_owned(), order);
        self.touched(id);
    }

    /// There is no order any more.
    pub(super) fn unordered(&mut self, id: &str) {
        self.touched(id);
        if let Some(order) = self.orders.remove(id) {
            self.needs.remove(&order);
        }
        self.decisions.remove(id);
        self.trouble.remove(id);
    }

    /// Decides what may have changed; answers what was decided.
    pub(super) fn decide(&mut self, stale: &Stale, now_ms: u64) -> BTreeMap<String, Decision> {
        let view = View { orders: &self.orders, world: &self.known.world, now_ms };
        let decided = match stale {
            Stale::All => plan(view),
            Stale::Only(ids) => plan_of(view, ids),
        };
        // What is slow and proves much is done where nobody counts on speed: in all tests.
        if cfg!(debug_assertions) {
            if *stale == Stale::All {
                self.decisions.clear();
            }
            self.decisions.extend(decided.iter().map(|(id, decision)| (id.clone(), decision.clone())));
            assert_eq!(passed_over(view, &self.decisions), None, "this object was not decided anew");
        }
        decided
    }
}

/// An object of which something else was to be decided; what expires is decided on time, and not looked at here.
fn passed_over<'a>(view: View<'a>, decisions: &BTreeMap<String, Decision>) -> Option<&'a str> {
    let expires = |order: &Order| {
        let seen = view.world.plain.get(order.kind.as_str()).and_then(|here| here.get(&order.object_id));
        seen.is_some_and(|seen| seen.until_ms.is_some())
    };
    let is_plain = |order: &Order| view.world.plain.contains_key(order.kind.as_str());
    let ids: BTreeSet<String> = {
        let plain = view.orders.iter().filter(|(_, order)| is_plain(order) && !expires(order));
        plain.map(|(id, _)| id.clone()).collect()
    };
    let anew = plan_of(view, &ids);
    let other = anew.iter().find(|(id, decision)| decisions.get(*id) != Some(decision));
    other.and_then(|(id, _)| view.orders.get_key_value(id)).map(|(id, _)| id.as_str())
}
