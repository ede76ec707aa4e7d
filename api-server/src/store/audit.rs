//! The audit: pages of the log's writes and denials, the newest first, by filters that each have an index.

use super::db::Value;
use super::history::COLUMNS;
use super::log::{self, Event};
use super::{Page, Store};
use crate::kernel::policy::Thing;
use crate::kernel::{Error, Right, Timestamp};

/// What the audit is asked for. All of it must hold.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// By whom.
    pub actor: Option<String>,
    /// On the object of this id.
    pub resource: Option<String>,
    /// On objects of this kind.
    pub kind: Option<String>,
    /// What was done.
    pub verb: Option<String>,
    /// How it ended.
    pub outcome: Option<String>,
    /// Recorded at this moment or later.
    pub since: Option<Timestamp>,
    /// Recorded before this moment.
    pub until: Option<Timestamp>,
    /// Go on before this number.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: i64,
}

impl Store {
    /// A page of the audit.
    pub async fn audit(&self, right: &Right, query: &AuditQuery) -> Result<Page<Event>, Error> {
        let mut conn = self.read_for(right).await?;
        // Times become numbers: both rise together, and numbers are what every index goes on with.
        let mut first = log::head(&mut conn).await?.first;
        if let Some(since) = query.since {
            first = first.max(log::before(&mut conn, since).await? + 1);
        }
        let mut before = query.before.unwrap_or(i64::MAX);
        if let Some(until) = query.until {
            before = before.min(log::before(&mut conn, until).await? + 1);
        }
        let (sql, values) = statement(right, query, first, before);
        let items = conn.rows(&sql, &values).await?.iter().map(log::event).collect::<Result<Vec<_>, _>>()?;
        let full = i64::try_from(items.len()).unwrap_or(i64::MAX) >= query.limit;
        let next = items.last().filter(|_| full).map(|last: &Event| last.seq.to_string());
        let items = items.into_iter().filter(|event| event.is_shown_by(right)).collect();
        Ok(Page { items, next })
    }
}

impl Event {
    /// Whether a right shows it. What tags its object had then is not known any more.
    pub fn is_shown_by(&self, right: &Right) -> bool {
        let (kind, tenant, id) = (&self.kind, &self.tenant, &self.resource);
        let mine = right.all_tenants() || self.tenant == right.tenant();
        mine && right.shows(&Thing { kind, tenant, id, tags: None, owner: None })
    }
}

fn statement(right: &Right, query: &AuditQuery, first: i64, before: i64) -> (String, Vec<Value>) {
    let tenant = (!right.all_tenants()).then(|| right.tenant().to_owned());
    let wanted = [
        ("tenant", &tenant),
        ("actor", &query.actor),
        ("resource", &query.resource),
        ("kind", &query.kind),
        ("verb", &query.verb),
        ("outcome", &query.outcome),
    ];
    let mut values: Vec<Value> = vec![first.into(), before.into(), query.limit.into()];
    let mut conditions = String::new();
    for (column, value) in wanted {
        if let Some(value) = value {
            values.push(value.as_str().into());
            conditions.push_str(&format!(" AND {column} = ${}", values.len()));
        }
    }
    let sql = format!(
        "SELECT seq, recorded_at, {COLUMNS}, erased FROM event_log WHERE audited = 1 AND seq >= $1 AND seq < $2\
         {conditions} ORDER BY seq DESC LIMIT $3"
    );
    (sql, values)
}
