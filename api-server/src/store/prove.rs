//! Proving the log: reads all of it and names whatever was flipped, dropped or put elsewhere.

use std::collections::BTreeMap;

use super::Store;
use super::db::{Conn, Row, values};
use super::history::COLUMNS;
use super::log::{self, Event, GENESIS, LogHead, Seal};
use crate::kernel::{Error, Timestamp};

/// The leader signs far more often: so many entries behind the last signed one are a sign that signatures were
/// taken away.
pub const MOST_UNSIGNED: i64 = 4096;
/// No more faults than these are listed; one is enough.
const MOST_FAULTS: usize = 50;
const PAGE: i64 = 1000;

/// What reading the whole log has shown.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    /// The first entry that is kept.
    pub first: i64,
    /// The last entry.
    pub last: i64,
    /// Its hash: whoever wrote down an earlier one can look whether it is still in the log.
    pub hash: String,
    /// How many signed checkpoints hold.
    pub checkpoints: i64,
    /// How many entries are behind the last of them.
    pub unsigned: i64,
    /// Whose content was erased.
    pub erased: i64,
    /// What is wrong, entry by entry; empty when the log is whole.
    pub faults: Vec<String>,
}

/// Walks along the log.
struct Walk<'a> {
    seal: &'a dyn Seal,
    proof: Proof,
    /// Number and hash of the entry before, as it says itself.
    at: i64,
    hash: String,
    signed: i64,
    /// The last entry that was taken out at the front, as the log itself tells.
    pruned: i64,
    /// How many entries were emptied, as the log itself tells.
    emptied: i64,
}

struct Checkpoint {
    hash: String,
    at: Timestamp,
    key: String,
    signature: String,
}

impl Store {
    /// Reads the whole log and checks it.
    pub async fn prove_log(&self, seal: &dyn Seal) -> Result<Proof, Error> {
        let mut conn = self.read().await?;
        loop {
            // Read first: what is signed meanwhile is beyond no end.
            let sealed = log::sealed(&mut conn).await?;
            let head = log::head(&mut conn).await?;
            let mut proof = prove(&mut conn, &head, seal).await?;
            if sealed > head.seq {
                proof.faults.push(format!(
                    "the log ends with entry {}, but entry {sealed} was signed: its end is cut off",
                    head.seq
                ));
            }
            // What was pruned while it was read is no fault.
            if proof.faults.is_empty() || log::head(&mut conn).await?.first == head.first {
                return Ok(proof);
            }
        }
    }
}

async fn prove(conn: &mut Conn, head: &LogHead, seal: &dyn Seal) -> Result<Proof, Error> {
    let mut walk = Walk {
        seal,
        proof: Proof { first: head.first, ..Proof::default() },
        at: head.first - 1,
        hash: GENESIS.to_owned(),
        signed: head.first - 1,
        pruned: 0,
        emptied: 0,
    };
    if head.first > 1 {
        let base = checkpoints(conn, head.first - 1, head.first - 1).await?;
        walk.base(base.get(&(head.first - 1)));
    }
    let sql = format!(
        "SELECT seq, recorded_at, {COLUMNS}, audited, erased, digest, prev, hash FROM event_log \
         WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT {PAGE}"
    );
    while walk.at < head.seq && walk.proof.faults.len() < MOST_FAULTS {
        let rows = conn.rows(&sql, values![walk.at, head.seq]).await?;
        let Some(last) = rows.last() else { break };
        let signed = checkpoints(conn, walk.at + 1, last.int("seq")?).await?;
        for row in &rows {
            walk.entry(row, &signed)?;
        }
    }
    // What has only just happened is not in the log yet.
    for row in conn.rows("SELECT verb, detail FROM event WHERE class = 'system'", &[]).await? {
        walk.told(&row.text("verb")?, &row.text("detail")?);
    }
    walk.end(head);
    Ok(walk.proof)
}

async fn checkpoints(conn: &mut Conn, first: i64, last: i64) -> Result<BTreeMap<i64, Checkpoint>, Error> {
    let sql = "SELECT seq, hash, at, key, signature FROM log_checkpoint WHERE seq >= $1 AND seq <= $2";
    let mut all = BTreeMap::new();
    for row in conn.rows(sql, values![first, last]).await? {
        let one = Checkpoint {
            hash: row.text("hash")?,
            at: row.time("at")?,
            key: row.text("key")?,
            signature: row.text("signature")?,
        };
        all.insert(row.int("seq")?, one);
    }
    Ok(all)
}

const PRUNED: &str = "entries up to ";
const ERASED: &str = "entries emptied: ";

/// How the log tells that its front was taken out.
pub(super) fn prune_detail(up_to: i64) -> String {
    format!("{PRUNED}{up_to}")
}

/// How the log tells that entries were emptied.
pub(super) fn erase_detail(count: u64) -> String {
    format!("{ERASED}{count}")
}

fn number(detail: &str, front: &str) -> i64 {
    detail.strip_prefix(front).and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Walk<'_> {
    fn fault(&mut self, text: String) {
        if self.proof.faults.len() < MOST_FAULTS {
            self.proof.faults.push(text);
        }
    }

    fn holds(&self, seq: i64, one: &Checkpoint) -> bool {
        let message = log::checkpoint_message(seq, &one.hash, one.at);
        one.key == self.seal.key() && self.seal.is_ours(&message, &one.signature)
    }

    /// What was before the first entry that is kept.
    fn base(&mut self, checkpoint: Option<&Checkpoint>) {
        let seq = self.at;
        match checkpoint {
            Some(one) if self.holds(seq, one) => self.hash = one.hash.clone(),
            Some(_) => {
                self.fault(format!("checkpoint {seq}, where the log begins, is not signed by our key"))
            }
            None => self.fault(format!("the log begins after entry {seq}, and no checkpoint signs that")),
        }
    }

    fn entry(&mut self, row: &Row, signed: &BTreeMap<i64, Checkpoint>) -> Result<(), Error> {
        let event = log::event(row)?;
        let (seq, digest, hash) = (event.seq, row.text("digest")?, row.text("hash")?);
        if seq > self.at + 1 {
            self.missing(self.at + 1, seq - 1);
        } else if row.text("prev")? != self.hash {
            self.fault(format!("entry {seq} does not follow entry {}: one of them was put there", self.at));
        }
        self.content(&event, row.truth("audited")?, &digest);
        if log::chain(&row.text("prev")?, seq, event.recorded_at, &digest) != hash {
            self.fault(format!("entry {seq} is not the one that was appended there: its hash is another"));
        }
        if let Some(one) = signed.get(&seq) {
            if !self.holds(seq, one) {
                self.fault(format!("checkpoint {seq} is not signed by our key"));
            } else if one.hash != hash {
                self.fault(format!("entry {seq} is not the one that was signed at checkpoint {seq}"));
            } else {
                self.proof.checkpoints += 1;
                self.signed = seq;
            }
        }
        (self.at, self.hash) = (seq, hash);
        Ok(())
    }

    fn content(&mut self, event: &Event, audited: bool, digest: &str) {
        if event.erased {
            self.proof.erased += 1;
            return;
        }
        if event.class == "system" {
            self.told(&event.verb, &event.detail);
        }
        if log::digest(event) != digest || log::is_audited(&event.class) != audited {
            self.fault(format!("entry {} was altered: it does not say what was digested", event.seq));
        }
    }

    /// A word of the system itself.
    fn told(&mut self, verb: &str, detail: &str) {
        match verb {
            "prune" => self.pruned = self.pruned.max(number(detail, PRUNED)),
            "erase" => self.emptied += number(detail, ERASED),
            _ => {}
        }
    }

    fn missing(&mut self, first: i64, last: i64) {
        let which = if first == last {
            format!("entry {first} is")
        } else {
            format!("entries {first} to {last} are")
        };
        self.fault(format!("{which} missing"));
    }

    fn end(&mut self, head: &LogHead) {
        if self.proof.faults.len() >= MOST_FAULTS {
            return;
        }
        if self.at < head.seq {
            self.missing(self.at + 1, head.seq);
        } else if self.hash != head.hash {
            self.fault(format!("entry {} is not the one that the log ends with", head.seq));
        }
        if head.first > 1 && self.pruned < head.first - 1 {
            self.fault(format!(
                "entries up to {} were taken out, and the log does not tell of it",
                head.first - 1
            ));
        }
        if self.proof.erased > self.emptied {
            let (erased, told) = (self.proof.erased, self.emptied);
            self.fault(format!("{erased} entries are empty, and the log tells of {told} only"));
        }
        self.proof.last = head.seq;
        self.proof.hash = head.hash.clone();
        self.proof.unsigned = head.seq - self.signed;
        if self.proof.unsigned > MOST_UNSIGNED {
            let signed = self.signed;
            self.fault(format!("the entries after {signed} are not signed, as they would long have been"));
        }
    }
}
