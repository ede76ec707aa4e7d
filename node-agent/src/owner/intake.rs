//! Orders on their way into the ledger. What the disk refuses is kept and tried again, before whatever comes later:
//! a later order in the ledger moves the cursor past all before it, and nobody would send those again.

use super::Owner;
use crate::ledger::{Answer, Ledger, LedgerError};
use crate::report;
use rhyzome_proto::v1::Order;
use std::sync::{MutexGuard, PoisonError};

/// Orders that the ledger has not taken yet, in the order in which they came.
#[derive(Debug, Default)]
pub struct Intake {
    waiting: Vec<Order>,
}

impl Intake {
    /// Puts these behind those that wait, and has the ledger take all. If the disk refuses, all wait.
    pub fn take(&mut self, ledger: &mut Ledger, orders: Vec<Order>) -> Result<Vec<Answer>, LedgerError> {
        self.waiting.extend(orders);
        if self.waiting.is_empty() {
            return Ok(Vec::new());
        }
        let answers = ledger.take(self.waiting.clone())?;
        self.waiting.clear();
        Ok(answers)
    }

    /// The session has ended: the next one sends everything above the cursor again.
    pub fn forget(&mut self) {
        self.waiting.clear();
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Owner {
    /// Orders that arrived together become durable together; nothing is done before that.
    pub(super) async fn take(&mut self, batch: Vec<Order>) {
        if batch.is_empty() && self.intake().is_empty() {
            return;
        }
        let (ledger, intake) = (self.ledger.clone(), self.intake.clone());
        let taken = self.env.blocking(move || {
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            intake.lock().unwrap_or_else(PoisonError::into_inner).take(&mut ledger, batch)
        });
        let answers = match taken.await {
            Ok(Ok(answers)) => answers,
            // Tried again with whatever comes next, and by the timer.
            Ok(Err(error)) => return tracing::error!(%error, "orders cannot be kept, so they are not obeyed"),
            Err(error) => return tracing::error!(%error, "the ledger's task ended"),
        };
        let ledger = self.ledger.clone();
        let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        for (order, answer) in answers {
            if let Err(refused) = answer {
                tracing::warn!(object = order.object_id, %refused, "order refused");
                self.send(report::of_refused(&order, &refused));
                continue;
            }
            self.told.remove(&order.object_id);
            self.working.remove(&order.object_id);
            // Whoever orders it anew wants it tried anew.
            self.trouble.remove(&order.object_id);
            self.gone_told.remove(&order.object_id);
            if order.remove {
                self.give_up_copying(&order.object_id);
            }
            if let Some(held) = ledger.orders().get(&order.object_id) {
                self.ordered(&order.object_id, held.clone());
            }
        }
    }

    /// Some of what came with many others gets its own place in the ledger.
    pub(super) async fn settle(&self) {
        // Asked every few seconds, and nearly always so: another thread is not worth its while.
        if self.ledger.lock().unwrap_or_else(PoisonError::into_inner).is_settled() {
            return;
        }
        let ledger = self.ledger.clone();
        let settle = move || ledger.lock().unwrap_or_else(PoisonError::into_inner).settle();
        match self.env.blocking(settle).await {
            Ok(Ok(_)) => {}
            // It is kept all the same, and tried again.
            Ok(Err(error)) => tracing::error!(%error, "orders cannot be given their own files"),
            Err(error) => tracing::error!(%error, "the ledger's task ended"),
        }
    }

    pub(super) fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn order(id: &str, sequence: u64) -> Order {
        Order {
            object_id: id.into(),
            db_epoch: 1,
            placement_epoch: 1,
            generation: 1,
            sequence,
            ..Order::default()
        }
    }

    #[test]
    fn no_order_is_passed_over_while_the_disk_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let (there, away) = (folder.path().join("ledger"), folder.path().join("away"));
        let (mut ledger, mut intake) = (Ledger::open(folder.path()).unwrap(), Intake::default());
        fs::rename(&there, &away).unwrap();
        intake.take(&mut ledger, vec![order("a", 1)]).unwrap_err();
        assert_eq!(ledger.cursor(), 0);
        fs::rename(&away, &there).unwrap();
        let taken = intake.take(&mut ledger, vec![order("b", 2)]).unwrap();
        assert_eq!(taken.iter().map(|(order, _)| order.object_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((ledger.cursor(), ledger.orders().len()), (2, 2));
        assert!(intake.is_empty() && intake.take(&mut ledger, Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn what_waits_is_left_to_the_next_session() {
        let folder = tempfile::tempdir().unwrap();
        let (there, away) = (folder.path().join("ledger"), folder.path().join("away"));
        let (mut ledger, mut intake) = (Ledger::open(folder.path()).unwrap(), Intake::default());
        fs::rename(&there, &away).unwrap();
        intake.take(&mut ledger, vec![order("a", 1)]).unwrap_err();
        intake.forget();
        fs::rename(&away, &there).unwrap();
        assert!(intake.take(&mut ledger, Vec::new()).unwrap().is_empty());
        assert_eq!(ledger.cursor(), 0, "the cursor asks for it again");
    }
}
