//! Reading: one object, or a page of them. A page costs what it shows, not what the table holds.

use super::Store;
use super::db::{Value, values};
use super::objects::{self, COLUMNS};
use crate::kernel::{Error, Kind, Meta, ResourceCore, Right, Stored};

/// What a list is asked for.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// At most so many.
    pub limit: i64,
    /// Go on behind this one: the `next` of the page before.
    pub after: Option<String>,
    /// Order by name instead of id.
    pub by_name: bool,
    /// Only the one of this name.
    pub name: Option<String>,
    /// Only those whose name begins so.
    pub name_prefix: Option<String>,
    /// Only those in this phase.
    pub phase: Option<String>,
    /// Not those that are being deleted.
    pub alive: bool,
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
        let (sql, values) = statement(right, kind.meta(), query);
        let rows = self.read().await?.rows(&sql, &values).await?;
        let items = rows.iter().map(objects::stored).collect::<Result<Vec<_>, _>>()?;
        let full = i64::try_from(items.len()).unwrap_or(i64::MAX) >= query.limit;
        let next = items
            .last()
            .filter(|_| full)
            .map(|last| if query.by_name { place_by_name(&last.core) } else { last.core.id.clone() });
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

    fn limit(&mut self, limit: i64) {
        self.values.push(limit.into());
        self.sql.push_str(&format!(" LIMIT ${}", self.values.len()));
    }
}

/// A place in the order of names. A tenant's own and one made for all may have the same: their ids tell them apart.
fn place_by_name(core: &ResourceCore) -> String {
    format!("{} {}", core.name, core.id)
}

fn statement(right: &Right, meta: &Meta, query: &ListQuery) -> (String, Vec<Value>) {
    let mut build = Builder { sql: String::new(), values: values![meta.kind].to_vec() };
    let order = if query.by_name { "name, id" } else { "id" };
    match right.sees(meta.scope)[..] {
        _ if right.all_tenants() => select(&mut build, None, query),
        [tenant] => select(&mut build, Some(tenant), query),
        // Each tenant's range of the index is read by itself, and no further than a page: what is merged then
        // does not depend on the size of the table.
        ref tenants => {
            for (nth, tenant) in tenants.iter().enumerate() {
                let union = if nth == 0 { "" } else { " UNION ALL " };
                build.sql.push_str(&format!("{union}SELECT * FROM ("));
                select(&mut build, Some(tenant), query);
                build.sql.push_str(&format!(") AS part{nth}"));
            }
            build.sql.push_str(&format!(" ORDER BY {order}"));
            build.limit(query.limit);
        }
    }
    (build.sql, build.values)
}

/// A page of one tenant's, or of all.
fn select(build: &mut Builder, tenant: Option<&str>, query: &ListQuery) {
    // Whatever the driving table is, it carries kind and tenant, so that its index is entered at the front.
    let by_live = query.by_name || query.name.is_some() || query.name_prefix.is_some();
    let (from, d, id) = if by_live {
        ("live d JOIN resource r ON r.id = d.id", "d", "d.id")
    } else if query.labels.is_empty() {
        ("resource r", "r", "r.id")
    } else {
        ("label d JOIN resource r ON r.id = d.resource", "d", "d.resource")
    };
    build.sql.push_str(&format!("SELECT {COLUMNS} FROM {from} WHERE {d}.kind = $1"));
    if let Some(tenant) = tenant {
        build.and(&format!("{d}.tenant = ?"), tenant);
    }
    build.sql.push_str(" AND r.gone_at IS NULL");
    if query.alive {
        build.sql.push_str(" AND r.deleted_at IS NULL");
    }
    let mut labels = query.labels.iter();
    if id == "d.resource"
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
    match &query.after {
        Some(after) if query.by_name => {
            let (name, last) = after.split_once(' ').unwrap_or((after, ""));
            build.and("d.name >= ?", name);
            build.values.push(name.into());
            let name = build.values.len();
            build.and(&format!("(d.name > ${name} OR d.id > ?)"), last);
        }
        Some(after) => build.and(&format!("{id} > ?"), after.as_str()),
        None => {}
    }
    let order = if query.by_name { "d.name, d.id" } else { id };
    build.sql.push_str(&format!(" ORDER BY {order}"));
    build.limit(query.limit);
}
