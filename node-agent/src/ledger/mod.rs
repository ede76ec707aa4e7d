//! What this node was ordered to hold, on the node's own disk: written and synced before anything is done, so
//! that a killed agent or a rebooted machine goes on without asking anybody.
//!
//! `ledger/meta.json` and one readable file per object under `ledger/objects/`. Many orders that come together are in one
//! file first (`batches`), and get their own when there is time.

mod batches;

use batches::Batches;

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
    /// Their orders are in force; their files are still to be written.
    batches: Batches,
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
        let (mut kept, mut batches, mut later) = (BTreeMap::new(), Batches::new(&objects), BTreeSet::new());
        for entry in fs::read_dir(&objects).map_err(|error| failed("read the folder", error))? {
            let path = entry.map_err(|error| failed("read the folder", error))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue; // A write that a crash cut short, or somebody's own file.
            }
            if Batches::is_one(&path) {
                later.insert(path);
                continue;
            }
            let bytes = fs::read(&path).map_err(|error| failed(&path.display().to_string(), error))?;
            let entry: Entry = parse(&path, &bytes)?;
            newer(&path, entry.version)?;
            kept.insert(entry.order.object_id.clone(), entry);
        }
        for path in later {
            for entry in batches.read(&path)? {
                let id = &entry.order.object_id;
                if kept.get(id).is_none_or(|held| held.worth() <= entry.worth()) {
                    kept.insert(id.clone(), entry);
                }
            }
        }
        let of_others = kept.iter().filter(|(_, entry)| entry.program != PROGRAM);
        let of_others = of_others.map(|(id, _)| id.clone()).collect();
        let orders = kept.into_iter().map(|(id, entry)| (id, entry.order)).collect();
        Ok(Self { folder, meta, orders, of_others, batches })
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

    /// Makes what is held for these durable: in one file if they are many.
    fn write_orders<'a>(&mut self, ids: impl Iterator<Item = &'a String>) -> Result<(), LedgerError> {
        let ids: BTreeSet<&String> = ids.collect();
        let written = if ids.len() > batches::MANY {
            let entries: Vec<Entry> = self.entries(ids, |_| PROGRAM).collect();
            self.batches.write(&entries)
        } else {
            self.write_files(ids, |_| PROGRAM)
        };
        written.map_err(|error| failed("write orders", error))
    }

    fn entries<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a String>,
        program: impl Fn(&str) -> &'static str,
    ) -> impl Iterator<Item = Entry> {
        let held = ids.into_iter().filter_map(|id| self.orders.get(id).cloned());
        held.map(move |order| Entry {
            version: VERSION,
            program: program(&order.object_id).to_owned(),
            order,
        })
    }

    fn write_files<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a String>,
        program: impl Fn(&str) -> &'static str,
    ) -> io::Result<()> {
        let objects = self.folder.join("objects");
        let render = |entry: Entry| {
            let bytes = serde_json::to_vec_pretty(&entry)?;
            Ok((objects.join(format!("{}.json", entry.order.object_id)), bytes))
        };
        let rendered = self.entries(ids, program).map(render).collect::<io::Result<Vec<_>>>()?;
        if rendered.is_empty() { Ok(()) } else { files::write_all_durable(&objects, &rendered) }
    }

    /// True if no orders wait for files of their own.
    pub fn is_settled(&self) -> bool {
        self.batches.first().is_none()
    }

    /// Gives some orders that came with many others their own files. False if none waits for that.
    pub fn settle(&mut self) -> Result<bool, LedgerError> {
        let first = self.batches.first().map(|(number, _)| number);
        first.map_or(Ok(false), |number| self.settle_batch(number).map(|()| true))
    }

    fn settle_batch(&mut self, number: u64) -> Result<(), LedgerError> {
        let ids = self.batches.ids(number).into_iter().flatten();
        // One that an agent of another version has kept is not ours to sign.
        let program = |id: &str| if self.of_others.contains(id) { "" } else { PROGRAM };
        let written = self.write_files(ids, program);
        written.and_then(|()| self.batches.remove(number)).map_err(|error| failed("settle orders", error))
    }

    /// What a batch holds of an object would come back with the next start.
    fn leave_batches(&mut self, object_id: &str) -> Result<(), LedgerError> {
        self.batches.holding(object_id).into_iter().try_for_each(|number| self.settle_batch(number))
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
        self.leave_batches(object_id)?;
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
        self.leave_batches(object_id)?;
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

/// The higher one is the later one.
fn rank(order: &Order) -> (u64, u64, u64, u64) {
    (order.db_epoch, order.placement_epoch, order.generation, order.sequence)
}

impl Entry {
    /// Of two for one object, the one that is worth more is in force. Of the same order this version's own may know more.
    fn worth(&self) -> ((u64, u64, u64, u64), bool) {
        (rank(&self.order), self.program == PROGRAM)
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
mod tests;
