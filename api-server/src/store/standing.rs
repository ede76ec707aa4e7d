//! Which jobs may begin: those behind no other.

use std::collections::{BTreeMap, BTreeSet};

use super::run::Run;
use super::tx::{Tx, list};
use crate::kernel::{Error, JobState};

/// What keeps jobs that wait from beginning.
#[derive(Default)]
pub(super) struct Standing {
    /// An older one of their object has not ended, or one that they come after.
    pub(super) blocked: BTreeSet<String>,
    /// It is among those in hand.
    pub(super) behind_one_in_hand: BTreeSet<String>,
    /// What they need could not be made.
    pub(super) failed: BTreeMap<String, String>,
}

impl Standing {
    /// Of those among these jobs that wait.
    pub(super) async fn of(tx: &mut Tx, runs: &[Run]) -> Result<Standing, Error> {
        let mut standing = Standing::default();
        let in_hand: BTreeSet<&String> = runs.iter().map(|run| &run.job.id).collect();
        let waiting = runs.iter().filter(|run| run.job.state == JobState::Waiting);
        let waiting: Vec<String> = waiting.map(|run| run.job.id.clone()).collect();
        if waiting.is_empty() {
            return Ok(standing);
        }
        let (list, values) = list(&waiting);
        let sql = format!(
            "SELECT j.id AS job, o.id AS after, o.state, o.finished_at, '' AS who FROM job j \
             JOIN job o ON (CASE WHEN o.finished_at IS NULL THEN o.resource END) = j.resource AND o.id < j.id \
             WHERE j.id IN {list} \
             UNION ALL SELECT a.job, a.after, o.state, o.finished_at, o.kind || ' `' || o.resource_name || '`' \
             FROM job_after a JOIN job o ON o.id = a.after WHERE a.job IN {list}"
        );
        for row in tx.rows(&sql, &values).await? {
            let (job, after) = (row.text("job")?, row.text("after")?);
            if row.maybe_int("finished_at")?.is_none() {
                if in_hand.contains(&after) {
                    standing.behind_one_in_hand.insert(job);
                } else {
                    standing.blocked.insert(job);
                }
            } else if JobState::parse(&row.text("state")?) != JobState::Done {
                let problem = format!("the {}, which it needs, could not be made", row.text("who")?);
                standing.failed.insert(job, problem);
            }
        }
        Ok(standing)
    }
}
