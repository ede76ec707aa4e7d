//! What this node was ordered to hold, on the node's own disk: written and synced before anything is done, so
//! that a killed agent or a rebooted machine goes on without asking anybody.
//!
//! `ledger/meta.json` and one readable file per object under `ledger/objects/`.

use crate::{files, names};
use rhyzome_proto::v1::Order;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The format's number. A program that finds a higher one refuses to start rather than guess.
const VERSION: u32 = 1;
/// The agent's own version. What another one has kept may lack what that one did not know of.
const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk.
    #[error("ledger: {doing}: {error}")]
    Io {
        /// What was tried.
        doing: String,
        /// How it failed.
        error: io::Error,
    },
    /// Not a file of ours, or of a newer program.
    #[error(
        "ledger: {path}: {reason}; move it away to start without it, the server then sends all orders again"
    )]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why an order is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The ledger has obeyed a newer database.
    #[error("stale-db-epoch: the order is of database epoch {order}, this node obeys {ledger}")]
    DbEpoch {
        /// The order's.
        order: u64,
        /// The ledger's.
        ledger: u64,
    },
    /// The ledger has a newer order for this object.
    #[error("stale-order: placement epoch and generation {order:?} come before {ledger:?}")]
    Older {
        /// The order's placement epoch and generation.
        order: (u64, u64),
        /// Those in the ledger.
        ledger: (u64, u64),
    },
    /// Ids become file names.
    #[error("bad-id: {0:?} cannot be an object id")]
    BadId(String),
}

/// An order, and whether it was taken.
pub type Answer = (Order, Result<(), Refused>);

/// An object that is gone, remembered until the server has surely heard so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Placement epoch of the removing order.
    pub placement_epoch: u64,
    /// Its generation.
    pub generation: u64,
    /// Its sequence: what was ordered after it may bring the object back.
    #[serde(default)]
    pub sequence: u64,
    /// Of the database that counted it.
    #[serde(default)]
    pub db_epoch: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Meta {
    version: u32,
    db_epoch: u64,
    /// Of orders in `objects` it may lag behind: they count themselves.
    cursor: u64,
    gone: BTreeMap<String, Gone>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: u32,
    /// Of the agent that kept it.
    #[serde(default)]
    program: String,
    order: Order,
}

/// The orders of this node.
#[derive(Debug)]
pub struct Ledger {
    folder: PathBuf,
    meta: Meta,
    orders: BTreeMap<String, Order>,
    /// Those that an agent of another version has kept: the server sends them again, whole.
    of_others: BTreeSet<String>,
}

impl Ledger {
    /// Reads the ledger under `state`, or begins one.
    pub fn open(state: &Path) -> Result<Self, LedgerError> {
        let folder = state.join("ledger");
        let objects = folder.join("objects");
        fs::create_dir_all(&objects).map_err(|error| failed("create the folder", error))?;
        let meta: Meta = match fs::read(folder.join("meta.json")) {
            Ok(bytes) => parse(&folder.join("meta.json"), &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Meta::default(),
            Err(error) => return Err(failed("read meta.json", error)),
        };
        newer(&folder.join("meta.json"), meta.version)?;
        let (mut orders, mut of_others) = (BTreeMap::new(), BTreeSet::new());
        for entry in fs::read_dir(&objects).map_err(|error| failed("read the folder", error))? {
            let path = entry.map_err(|error| failed("read the folder", error))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue; // A write that a crash cut short, or somebody's own file.
            }
            let bytes = fs::read(&path).map_err(|error| failed(&path.display().to_string(), error))?;
            let entry: Entry = parse(&path, &bytes)?;
            newer(&path, entry.version)?;
            if entry.program != PROGRAM {
                of_others.insert(entry.order.object_id.clone());
            }
            orders.insert(entry.order.object_id.clone(), entry.order);
        }
        Ok(Self { folder, meta, orders, of_others })
    }

    /// The highest database epoch ever obeyed.
    pub fn db_epoch(&self) -> u64 {
        let epochs = self.orders.values().map(|order| order.db_epoch);
        epochs.max().unwrap_or(0).max(self.meta.db_epoch)
    }

    /// Up to where the server need not send orders: the highest sequence of that database epoch. Nothing of it counts
    /// while there are orders that an agent of another version has kept.
    pub fn cursor(&self) -> u64 {
        if self.of_others.is_empty() { self.highest() } else { 0 }
    }

    fn highest(&self) -> u64 {
        let epoch = self.db_epoch();
        let of_epoch = self.orders.values().filter(|order| order.db_epoch == epoch);
        let kept = if self.meta.db_epoch == epoch { self.meta.cursor } else { 0 };
        of_epoch.map(|order| order.sequence).max().unwrap_or(0).max(kept)
    }

    /// Remembers the epoch of the database that this node obeys from now on.
    pub fn raise_epoch(&mut self, db_epoch: u64) -> Result<(), LedgerError> {
        if db_epoch <= self.db_epoch() {
            return Ok(());
        }
        // Sequences of another epoch say nothing about this one's.
        (self.meta.db_epoch, self.meta.cursor) = (db_epoch, 0);
        self.write_meta()
    }

    /// All orders, by object.
    pub fn orders(&self) -> &BTreeMap<String, Order> {
        &self.orders
    }

    /// Objects that are gone and whose GONE may not have been heard yet.
    pub fn gone(&self) -> &BTreeMap<String, Gone> {
        &self.meta.gone
    }

    /// Takes orders that arrived together: each is checked, then all that are taken become durable together.
    /// Answers for each whether it was taken. If the disk refuses, none is.
    pub fn take(&mut self, orders: Vec<Order>) -> Result<Vec<Answer>, LedgerError> {
        let mut answers = Vec::with_capacity(orders.len());
        let mut before = Vec::new();
        // Asked of all orders once, not for each of thousands that come together.
        let mut db_epoch = self.db_epoch();
        for mut order in orders {
            let answer = self.check(&order, db_epoch);
            if let Some(held) = self.orders.get(&order.object_id).filter(|_| order.remove) {
                // What is to be removed is what is held, whatever a removing order leaves out.
                order.body = order.body.or_else(|| held.body.clone());
                if order.kind.is_empty() {
                    order.kind.clone_from(&held.kind);
                }
            }
            let is_news = self.orders.get(&order.object_id) != Some(&order);
            if answer.is_ok() && (is_news || self.of_others.contains(&order.object_id)) {
                let id = order.object_id.clone();
                db_epoch = db_epoch.max(order.db_epoch);
                let held = self.orders.insert(id.clone(), order.clone());
                let gone = self.meta.gone.remove(&id);
                before.push((id, held, gone));
            }
            answers.push((order, answer));
        }
        if let Err(error) = self.write_orders(before.iter().map(|(id, ..)| id)) {
            // The last first: what one order replaced may itself have come with this batch.
            for (id, held, gone) in before.into_iter().rev() {
                put_back(&mut self.orders, &id, held);
                put_back(&mut self.meta.gone, &id, gone);
            }
            return Err(error);
        }
        for (id, ..) in &before {
            self.of_others.remove(id);
        }
        Ok(answers)
    }

    fn write_orders<'a>(&self, ids: impl Iterator<Item = &'a String>) -> Result<(), LedgerError> {
        let objects = self.folder.join("objects");
        let ids: BTreeSet<&String> = ids.collect();
        if ids.is_empty() {
            return Ok(());
        }
        let held = ids.into_iter().filter_map(|id| Some((id, self.orders.get(id)?)));
        let render = |(id, order): (&String, &Order)| {
            let bytes = serde_json::to_vec_pretty(&Entry {
                version: VERSION,
                program: PROGRAM.to_owned(),
                order: order.clone(),
            })?;
            Ok((objects.join(format!("{id}.json")), bytes))
        };
        let written = held.map(render).collect::<io::Result<Vec<_>>>();
        written
            .and_then(|written| files::write_all_durable(&objects, &written))
            .map_err(|error| failed("write orders", error))
    }

    /// `ledger` is the epoch that this node obeys.
    fn check(&self, order: &Order, ledger: u64) -> Result<(), Refused> {
        if !names::is_safe_id(&order.object_id) {
            return Err(Refused::BadId(order.object_id.clone()));
        }
        if order.db_epoch < ledger {
            return Err(Refused::DbEpoch { order: order.db_epoch, ledger });
        }
        let Some(held) = self.orders.get(&order.object_id) else {
            return self.check_gone(order);
        };
        let rank = |order: &Order| (order.db_epoch, order.placement_epoch, order.generation, order.sequence);
        if rank(order) < rank(held) {
            return Err(Refused::Older {
                order: (order.placement_epoch, order.generation),
                ledger: (held.placement_epoch, held.generation),
            });
        }
        Ok(())
    }

    /// An order from before the removal must not bring an object back. One from after it may, in the same
    /// generation: a network comes and goes with the instances that need it.
    fn check_gone(&self, order: &Order) -> Result<(), Refused> {
        let Some(gone) = self.meta.gone.get(&order.object_id) else { return Ok(()) };
        let stale = (order.db_epoch, order.sequence) <= (gone.db_epoch, gone.sequence);
        if order.remove || !stale {
            return Ok(());
        }
        Err(Refused::Older {
            order: (order.placement_epoch, order.generation),
            ledger: (gone.placement_epoch, gone.generation),
        })
    }

    /// Forgets an object whose removal is done; that it is gone stays known until [`Ledger::heard`].
    pub fn finish_removal(&mut self, object_id: &str) -> Result<(), LedgerError> {
        let Some(order) = self.orders.get(object_id) else { return Ok(()) };
        let gone = Gone {
            placement_epoch: order.placement_epoch,
            generation: order.generation,
            sequence: order.sequence,
            db_epoch: order.db_epoch,
        };
        self.meta.gone.insert(object_id.to_owned(), gone);
        self.write_meta()?;
        self.orders.remove(object_id);
        self.of_others.remove(object_id);
        let objects = self.folder.join("objects");
        files::remove_if_there(&objects.join(format!("{object_id}.json")))
            .and_then(|_| files::sync_folder(&objects))
            .map_err(|error| failed("forget an object", error))
    }

    /// Drops the order for an object, if it is of an older database than the one that this node obeys. Nothing is said to
    /// be gone: what was made for it is still there. False if nothing was dropped.
    pub fn drop_stale(&mut self, object_id: &str) -> Result<bool, LedgerError> {
        let db_epoch = self.db_epoch();
        if self.orders.get(object_id).is_none_or(|order| order.db_epoch >= db_epoch) {
            return Ok(false);
        }
        self.write_meta()?;
        self.orders.remove(object_id);
        let objects = self.folder.join("objects");
        files::remove_if_there(&objects.join(format!("{object_id}.json")))
            .and_then(|_| files::sync_folder(&objects))
            .map_err(|error| failed("drop an order", error))?;
        Ok(true)
    }

    /// Forgets that objects are gone.
    pub fn heard(&mut self, object_ids: &[String]) -> Result<(), LedgerError> {
        for id in object_ids {
            self.meta.gone.remove(id);
        }
        self.write_meta()
    }

    fn write_meta(&mut self) -> Result<(), LedgerError> {
        // Both at once: the cursor belongs to the epoch.
        (self.meta.cursor, self.meta.db_epoch) = (self.highest(), self.db_epoch());
        self.meta.version = VERSION;
        let bytes = serde_json::to_vec_pretty(&self.meta).map_err(|error| failed("render", error.into()))?;
        files::write_durable(&self.folder.join("meta.json"), &bytes)
            .and_then(|()| files::sync_folder(&self.folder))
            .map_err(|error| failed("write meta.json", error))
    }
}

fn put_back<T>(map: &mut BTreeMap<String, T>, id: &str, value: Option<T>) {
    match value {
        Some(value) => drop(map.insert(id.to_owned(), value)),
        None => drop(map.remove(id)),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path, bytes: &[u8]) -> Result<T, LedgerError> {
    serde_json::from_slice(bytes).map_err(|error| LedgerError::Unreadable {
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

fn newer(path: &Path, version: u32) -> Result<(), LedgerError> {
    if version <= VERSION {
        return Ok(());
    }
    let reason = format!("is of format {version}, this agent knows {VERSION}: a newer agent wrote it");
    Err(LedgerError::Unreadable { path: path.display().to_string(), reason })
}

fn failed(doing: &str, error: io::Error) -> LedgerError {
    LedgerError::Io { doing: doing.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: &str, placement_epoch: u64, generation: u64, sequence: u64) -> Order {
        Order { object_id: id.into(), db_epoch: 1, placement_epoch, generation, sequence, ..Order::default() }
    }

    fn take(ledger: &mut Ledger, order: Order) -> Result<(), Refused> {
        ledger.take(vec![order]).unwrap().remove(0).1
    }

    /// An older agent kept an order without what it did not know of; its successor must get that.
    #[test]
    fn what_another_version_has_kept_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        ledger.take(vec![order("a", 1, 1, 5), order("b", 1, 1, 6)]).unwrap();
        let file = folder.path().join("ledger/objects/a.json");
        let kept = fs::read_to_string(&file).unwrap();
        assert!(kept.contains(PROGRAM), "{kept}");
        fs::write(&file, kept.replace(PROGRAM, "0.0.1")).unwrap();

        let mut ledger = Ledger::open(folder.path()).unwrap();
        assert_eq!((ledger.cursor(), ledger.orders().len()), (0, 2));
        // What it writes meanwhile does not forget how far it was.
        ledger.heard(&[]).unwrap();
        take(&mut ledger, order("b", 1, 1, 6)).unwrap();
        assert_eq!(ledger.cursor(), 0);
        let whole = Order { tenant: "new to the old one".into(), ..order("a", 1, 1, 5) };
        take(&mut ledger, whole.clone()).unwrap();
        assert_eq!((ledger.cursor(), &ledger.orders()["a"]), (6, &whole));
        assert_eq!(Ledger::open(folder.path()).unwrap().cursor(), 6);

        // The same bytes again are as good as others.
        fs::write(&file, fs::read_to_string(&file).unwrap().replace(PROGRAM, "9.9.9")).unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        take(&mut ledger, whole).unwrap();
        drop(ledger);
        assert_eq!(Ledger::open(folder.path()).unwrap().cursor(), 6);
    }

    #[test]
    fn orders_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        ledger.take(vec![order("a", 1, 1, 5), order("b", 1, 1, 6)]).unwrap();
        drop(ledger);
        let ledger = Ledger::open(folder.path()).unwrap();
        assert_eq!((ledger.db_epoch(), ledger.cursor()), (1, 6));
        assert_eq!(ledger.orders()["a"], order("a", 1, 1, 5));
    }

    #[test]
    fn what_is_older_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        take(&mut ledger, order("a", 2, 3, 5)).unwrap();
        take(&mut ledger, order("a", 2, 3, 5)).unwrap();
        for older in [order("a", 1, 9, 6), order("a", 2, 2, 6), order("a", 2, 3, 4)] {
            let refused = take(&mut ledger, older).unwrap_err();
            assert!(refused.to_string().starts_with("stale-order: "), "{refused}");
        }
        let old_database = Order { db_epoch: 0, ..order("b", 9, 9, 9) };
        assert_eq!(take(&mut ledger, old_database), Err(Refused::DbEpoch { order: 0, ledger: 1 }));
        assert!(matches!(take(&mut ledger, order("../a", 1, 1, 7)), Err(Refused::BadId(_))));
        take(&mut ledger, order("a", 3, 1, 6)).unwrap();
        assert_eq!(ledger.orders().len(), 1);
    }

    #[test]
    fn a_restored_database_counts_from_its_own_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        take(&mut ledger, order("a", 2, 3, 500)).unwrap();
        ledger.raise_epoch(2).unwrap();
        assert_eq!((ledger.db_epoch(), ledger.cursor()), (2, 0));
        take(&mut ledger, Order { db_epoch: 2, ..order("a", 1, 1, 7) }).unwrap();
        assert_eq!((ledger.db_epoch(), ledger.cursor()), (2, 7));
    }

    #[test]
    fn what_is_gone_stays_gone_until_it_was_heard() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        take(&mut ledger, order("a", 1, 1, 5)).unwrap();
        take(&mut ledger, Order { remove: true, ..order("a", 1, 2, 6) }).unwrap();
        ledger.finish_removal("a").unwrap();
        assert!(ledger.orders().is_empty());
        let mut ledger = Ledger::open(folder.path()).unwrap();
        assert_eq!(ledger.cursor(), 6);
        assert!(ledger.gone().contains_key("a"));
        assert!(take(&mut ledger, order("a", 1, 1, 5)).is_err());
        ledger.heard(&["a".into()]).unwrap();
        let ledger = Ledger::open(folder.path()).unwrap();
        assert!(ledger.gone().is_empty());
        assert_eq!(fs::read_dir(folder.path().join("ledger/objects")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_gone_comes_back_when_it_is_ordered_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        take(&mut ledger, order("net", 1, 1, 5)).unwrap();
        take(&mut ledger, Order { remove: true, ..order("net", 1, 1, 6) }).unwrap();
        ledger.finish_removal("net").unwrap();
        assert!(take(&mut ledger, order("net", 1, 1, 5)).is_err());
        take(&mut ledger, order("net", 1, 1, 7)).unwrap();
        assert!(ledger.gone().is_empty() && ledger.orders().contains_key("net"));
    }

    #[test]
    fn a_ledger_of_a_newer_agent_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(Ledger::open(folder.path()).unwrap());
        let meta = folder.path().join("ledger/meta.json");
        fs::write(&meta, r#"{"version":9,"db_epoch":0,"cursor":0,"gone":{}}"#).unwrap();
        let error = Ledger::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("a newer agent wrote it"), "{error}");
    }
}
