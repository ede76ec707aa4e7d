//! What is on the node unasked, told when it changed; and what operators have decided on it.

use super::Owner;
use super::stale::Stale;
use crate::findings::Scene;
use crate::reconcile::Action;
use rhyzome_proto::v1::{Decision, Findings};
use std::sync::PoisonError;

impl Owner {
    /// Says what there is beside what is reported on, if that is new, and does what operators have decided on it. Only
    /// once the server has sent all that it orders: before that, what it will order looks unknown.
    pub(super) async fn survey(&mut self) {
        if !std::mem::take(&mut self.drift.is_due) || self.connected.is_none() || !self.drift.caught_up {
            return;
        }
        let db_epoch = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).db_epoch();
        let scene = Scene {
            orders: &self.orders,
            world: &self.known.world,
            beside: &self.known.beside,
            db_epoch,
            now_ms: self.env.now_ms(),
        };
        let findings = self.known.diary.findings(scene);
        self.obey(&findings).await;
        if self.drift.told.as_ref() != Some(&findings) {
            self.drift.told = Some(findings.clone());
            (self.wires.findings)(findings);
        }
    }

    /// A decision on a difference that is not there means nothing: so it does no harm to hear it again.
    async fn obey(&mut self, findings: &Findings) {
        let stands = |id: &str| {
            let mut all = findings.differences.iter();
            all.find(|it| it.id == id && it.repaired_at_ms == 0).cloned()
        };
        let mut approved = std::collections::BTreeSet::new();
        for decision in self.drift.decisions.clone() {
            let Some(difference) = stands(&decision.id) else { continue };
            let object = difference.object_id;
            match (decision.verb.as_str(), difference.what.as_str()) {
                ("repair", "disk.missing") => drop(approved.insert(object)),
                ("repair", "guest.file") => {
                    let now = self.env.now_ms();
                    tracing::warn!(instance = object, "an operator has its files written again");
                    self.begin(&object, Action::Rewrite, now);
                }
                ("forget", "guest.orphan") => self.forget_orphan(&object).await,
                _ => {}
            }
        }
        if self.known.world.approved != approved {
            self.known.world.approved = approved;
            self.stale = Stale::All;
        }
    }

    /// The orders of an orphan are dropped. Nothing of it is touched: it runs until somebody ends it, and is then not
    /// brought back.
    async fn forget_orphan(&mut self, id: &str) {
        if !self.orders.contains_key(id) {
            return;
        }
        let (ledger, object) = (self.ledger.clone(), id.to_owned());
        let dropped = self
            .env
            .blocking(move || ledger.lock().unwrap_or_else(PoisonError::into_inner).drop_stale(&object));
        match dropped.await {
            Ok(Ok(true)) => {
                tracing::warn!(
                    object = id,
                    "an operator has it forgotten: its order is dropped, it is left alone"
                );
                self.unordered(id);
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::error!(%error, object = id, "its order cannot be dropped"),
            Err(error) => tracing::error!(%error, object = id, "its order cannot be dropped"),
        }
    }
}

/// What is told and was decided, in the present session.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// Something may have changed.
    pub is_due: bool,
    /// The server has sent all that it orders.
    pub caught_up: bool,
    /// In this session.
    pub told: Option<Findings>,
    /// Of operators, as the server said last.
    pub decisions: Vec<Decision>,
}

impl Drift {
    /// A session begins or ends: everything is to be told and heard again.
    pub fn begin_anew(&mut self) {
        *self = Self { is_due: true, ..Self::default() };
    }
}
