//! Reading: one object, or a page of them. A page costs what it shows, not what the table holds.

use super::Store;
use super::db::{Value, values};
use super::objects::{self, COLUMNS};
use crate::kernel::{Error, Kind, Right, Stored};

/// What a list is asked for.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// At most so many.
    pub limit: i64,
    /// Go on behind this one: an id, or with `by_name` a name.
    pub after: Option<String>,
    /// Order by name instead of id.
    pub by_name: bool,
    /// Only the one of this name.
    pub name: Option<String>,
    /// Only those whose name begins so.
    pub name_prefix: Option<String>,
    /// Only those in this phase.
    pub phase: Option<String>,
    /// Only those with all of these (`tag.env`, `metadata.team.id`).
    pub labels: Vec<(String, String)>,
}

/// A page, and where the next one begins.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// To go on with; `None` at the end.
    pub next: Option<String>,
}

impl Store {
    /// The object of this id or name. One that is being deleted is found by its id until it has gone.
    pub async fn get(&self, right: &Right, kind: &'static dyn Kind, id: &str) -> Result<Stored, Error> {
        objects::find(&mut self.read().await?, right, kind, id).await
    }

    /// A page of objects.
    pub async fn list(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        query: &ListQuery,
    ) -> Result<Page<Stored>, Error> {
        let (sql, values) = statement(right, kind.meta().kind, query);
        let rows = self.read().await?.rows(&sql, &values).await?;
        let items = rows.iter().map(objects::stored).collect::<Result<Vec<_>, _>>()?;
        let full = i64::try_from(items.len()).unwrap_or(i64::MAX) >= query.limit;
        let next = items
            .last()
            .filter(|_| full)
            .map(|last| if query.by_name { last.core.name.clone() } else { last.core.id.clone() });
        Ok(Page { items, next })
    }
}

/// Builds a statement whose conditions each narrow an index.
struct Builder {
    sql: String,
    values: Vec<Value>,
}

impl Builder {
    fn and(&mut self, condition: &str, value: impl Into<Value>) {
        self.values.push(value.into());
        self.sql.push_str(" AND ");
        self.sql.push_str(&condition.replace('?', &format!("${}", self.values.len())));
    }
}

fn statement(right: &Right, kind: &str, query: &ListQuery) -> (String, Vec<Value>) {
    // Whatever the driving table is, it carries kind and tenant, so that its index is entered at the front.
    let by_live = query.by_name || query.name.is_some() || query.name_prefix.is_some();
    let (from, driver) = if by_live {
        ("live d JOIN resource r ON r.id = d.id", "d.id")
    } else if query.labels.is_empty() {
        ("resource d JOIN resource r ON r.id = d.id", "d.id")
    } else {
        ("label d JOIN resource r ON r.id = d.resource", "d.resource")
    };
    let from = if driver == "d.id" && !by_live { "resource r" } else { from };
    let (d, driver) = if from == "resource r" { ("r", "r.id") } else { ("d", driver) };
    let sql = format!("SELECT {COLUMNS} FROM {from} WHERE {d}.kind = $1");
    let mut build = Builder { sql, values: values![kind].to_vec() };
    if !right.all_tenants() {
        build.and(&format!("{d}.tenant = ?"), right.tenant());
    }
    build.sql.push_str(" AND r.gone_at IS NULL");
    let mut labels = query.labels.iter();
    if driver == "d.resource"
        && let Some((key, value)) = labels.next()
    {
        build.and("d.key = ?", key.as_str());
        build.and("d.value = ?", value.as_str());
    }
    for (key, value) in labels {
        build.values.push(key.as_str().into());
        let key = build.values.len();
        let exists = format!(
            "EXISTS (SELECT 1 FROM label l WHERE l.resource = r.id AND l.key = ${key} AND l.value = ?)"
        );
        build.and(&exists, value.as_str());
    }
    if let Some(name) = &query.name {
        build.and("d.name = ?", name.as_str());
    }
    if let Some(prefix) = &query.name_prefix {
        build.and("d.name >= ?", prefix.as_str());
        // Names are ASCII: nothing that begins with the prefix sorts behind this.
        build.and("d.name < ?", format!("{prefix}\u{7f}"));
    }
    if let Some(phase) = &query.phase {
        build.and("r.phase = ?", phase.as_str());
    }
    let order = if query.by_name { "d.name" } else { driver };
    if let Some(after) = &query.after {
        build.and(&format!("{order} > ?"), after.as_str());
    }
    build.values.push(Value::from(query.limit));
    let limit = build.values.len();
    (format!("{} ORDER BY {order} LIMIT ${limit}", build.sql), build.values)
}
