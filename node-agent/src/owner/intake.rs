//! Orders on their way into the ledger. What the disk refuses is kept and tried again, before whatever comes later:
//! a later order in the ledger moves the cursor past all before it, and nobody would send those again.

use crate::ledger::{Answer, Ledger, LedgerError};
use rhyzome_proto::v1::Order;

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
