//! Reading: one object, or a page of them. A page costs what it shows, not what the table holds.

use super::Store;
use super::db::{Conn, Value, values};
use super::objects::{self, COLUMNS};
use super::tx::{padded, places};
use crate::kernel::policy::Narrow;
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
    /// Only these, if there are any.
    pub ids: Vec<String>,
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
        objects::find(&mut self.read_for(right).await?, right, kind, id).await
    }

    /// A page of objects. One that had to look at too many for what it found ends early, and has a `next`.
    pub async fn list(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        query: &ListQuery,
    ) -> Result<Page<Stored>, Error> {
        match right.narrow(kind.meta().kind) {
            Narrow::Whole => self.page(right, kind, query).await,
            narrow => self.narrowed(right, kind, query, narrow).await,
        }
    }

    /// A page of those that the right shows: the database leads to few that it does not, and each is looked at.
    async fn narrowed(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        query: &ListQuery,
        narrow: Narrow,
    ) -> Result<Page<Stored>, Error> {
        let wanted = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let mut asked = ListQuery { limit: query.limit.max(LOOK_AT), ..query.clone() };
        match narrow {
            Narrow::Objects(ids) => asked.ids = ids,
            Narrow::Labels(labels) => drop(asked.labels.splice(0..0, labels)),
            Narrow::Whole | Narrow::Each => {}
        }
        let (mut items, mut rounds) = (Vec::new(), 0);
        loop {
            let page = self.page(right, kind, &asked).await?;
            items.extend(page.items.into_iter().filter(|object| right.lists(&object.core)));
            if items.len() > wanted || (items.len() == wanted && page.next.is_some()) {
                items.truncate(wanted);
                let next = items.last().map(|last| Place::of(&last.core).cursor(query));
                return Ok(Page { items, next });
            }
            rounds += 1;
            // A place among names would tell the name of what is not shown: those are read to the end.
            if page.next.is_none() || (rounds == MOST_ROUNDS && !query.by_name) {
                return Ok(Page { items, next: page.next });
            }
            asked.after = page.next;
        }
    }

    async fn page(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        query: &ListQuery,
    ) -> Result<Page<Stored>, Error> {
        let (meta, mut conn) = (kind.meta(), self.read_for(right).await?);
        let end =
            if query.asks_more(right) { window_end(&mut conn, right, meta, query).await? } else { None };
        let (sql, values) = statement(right, meta, query, end.as_ref());
        let rows = conn.rows(&sql, &values).await?;
        let items = rows.iter().map(objects::stored).collect::<Result<Vec<_>, _>>()?;
        let full = i64::try_from(items.len()).unwrap_or(i64::MAX) >= query.limit;
        let last = if full { items.last().map(|last| Place::of(&last.core)) } else { end };
        Ok(Page { items, next: last.map(|place| place.cursor(query)) })
    }
}

/// So many at once are looked at for those who are not shown all of them, and so often for one page.
const LOOK_AT: i64 = 200;
const MOST_ROUNDS: usize = 20;

/// How many are looked at for one page by filters that no index answers together: what it costs then depends
/// neither on how many there are nor on how few of them are wanted.
const WINDOW: usize = 2000;

/// A place in the order of a list. A tenant's own and one made for all may have the same name: their ids tell
/// them apart.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    name: String,
    id: String,
}

impl Place {
    fn of(core: &ResourceCore) -> Place {
        Place { name: core.name.clone(), id: core.id.clone() }
    }

    fn cursor(self, query: &ListQuery) -> String {
        if query.by_name { format!("{} {}", self.name, self.id) } else { self.id }
    }
}

/// The table whose index a list follows.
#[derive(Clone, Copy, PartialEq)]
enum Driver {
    Live,
    Label,
    Resource,
}

impl Driver {
    fn table(self) -> &'static str {
        match self {
            Driver::Live => "live",
            Driver::Label => "label",
            Driver::Resource => "resource",
        }
    }

    fn id(self) -> &'static str {
        match self {
            Driver::Live => "d.id",
            Driver::Label => "d.resource",
            Driver::Resource => "r.id",
        }
    }
}

impl ListQuery {
    fn driver(&self) -> Driver {
        match () {
            () if self.by_name || self.name.is_some() || self.name_prefix.is_some() => Driver::Live,
            () if !self.labels.is_empty() => Driver::Label,
            () => Driver::Resource,
        }
    }

    /// The labels that the driver's index does not answer.
    fn other_labels(&self) -> &[(String, String)] {
        if self.driver() == Driver::Label { &self.labels[1..] } else { &self.labels }
    }

    /// True if there are filters that the driver's index does not answer, for more than the one of a name.
    fn asks_more(&self, right: &Right) -> bool {
        let many = self.name.is_none() || right.all_tenants();
        many && (!self.other_labels().is_empty()
            || (self.phase.is_some() && self.driver() != Driver::Resource))
    }
}

/// Builds a statement whose conditions each narrow an index.
struct Builder {
    sql: String,
    values: Vec<Value>,
}

impl Builder {
    fn new(meta: &Meta) -> Builder {
        Builder { sql: String::new(), values: values![meta.kind].to_vec() }
    }

    /// `?` in the condition is the value.
    fn and(&mut self, condition: &str, value: impl Into<Value>) {
        self.values.push(value.into());
        self.sql.push_str(" AND ");
        self.sql.push_str(&condition.replace('?', &format!("${}", self.values.len())));
    }

    /// A word of few that some have often and others hardly ever. It stands in the text, where the planner sees
    /// which one it is: for a value that it does not see it may walk past a million others.
    fn and_word(&mut self, column: &str, word: &str) {
        match word_in_text(word) {
            Some(text) => self.sql.push_str(&format!(" AND {column} = {text}")),
            None => self.and(&format!("{column} = ?"), word),
        }
    }

    fn limit(&mut self, limit: i64) {
        self.values.push(limit.into());
        self.sql.push_str(&format!(" LIMIT ${}", self.values.len()));
    }

    /// What the driver's index answers.
    fn driven(&mut self, tenant: Option<&str>, query: &ListQuery) {
        let (driver, id) = (query.driver(), query.driver().id());
        let d = if driver == Driver::Resource { "r" } else { "d" };
        self.sql.push_str(&format!(" WHERE {d}.kind = $1"));
        if let Some(tenant) = tenant {
            self.and(&format!("{d}.tenant = ?"), tenant);
        }
        match driver {
            Driver::Live => {}
            Driver::Label => {
                if let Some((key, value)) = query.labels.first() {
                    self.and("d.key = ?", key.as_str());
                    self.and("d.value = ?", value.as_str());
                }
            }
            Driver::Resource => self.sql.push_str(" AND r.gone_at IS NULL"),
        }
        if !query.ids.is_empty() {
            let first = self.values.len() + 1;
            let ids = padded(&query.ids);
            self.sql.push_str(&format!(" AND {id} IN {}", places(1, ids.len(), first)));
            self.values.extend(ids.iter().map(Value::from));
        }
        if let Some(name) = &query.name {
            self.and("d.name = ?", name.as_str());
        }
        if let Some(prefix) = &query.name_prefix {
            self.and("d.name >= ?", prefix.as_str());
            // Names are ASCII: nothing that begins with the prefix sorts behind this.
            self.and("d.name < ?", format!("{prefix}\u{7f}"));
        }
        match &query.after {
            Some(after) if query.by_name => {
                let (name, last) = after.split_once(' ').unwrap_or((after, ""));
                self.values.push(name.into());
                let nth = self.values.len();
                match tenant {
                    Some(_) => self.and(&format!("d.name >= ${nth} AND (d.name > ${nth} OR d.id > ?)"), last),
                    None => self.and(&format!("(d.name, d.id) > (${nth}, ?)"), last),
                }
            }
            Some(after) => self.and(&format!("{id} > ?"), after.as_str()),
            None => {}
        }
    }

    /// In the order of the driver's index.
    fn ordered(&mut self, tenant: Option<&str>, query: &ListQuery) {
        // Within a tenant names are unique, and its index knows nothing of ids behind them.
        let order = match (query.by_name, tenant) {
            (_, Some(_)) if query.name.is_some() => return,
            (true, Some(_)) => "d.name",
            (true, None) => "d.name, d.id",
            (false, _) => query.driver().id(),
        };
        self.sql.push_str(&format!(" ORDER BY {order}"));
    }

    /// What it does not answer: looked up for each that the index leads to. So written that no planner begins with
    /// it instead, because a guess says that few have this label or phase.
    fn others(&mut self, query: &ListQuery) {
        if query.alive {
            self.sql.push_str(" AND r.deleted_at IS NULL");
        }
        for (key, value) in query.other_labels() {
            self.values.push(key.as_str().into());
            let key = self.values.len();
            self.and(
                &format!("(SELECT l.value FROM label l WHERE l.resource = r.id AND l.key = ${key}) = ?"),
                value.as_str(),
            );
        }
        if let Some(phase) = &query.phase {
            let leads = query.driver() == Driver::Resource;
            self.and_word(if leads { "r.phase" } else { "r.phase || ''" }, phase);
        }
    }
}

/// A word as it may stand in a statement, if it is one.
pub(super) fn word_in_text(word: &str) -> Option<String> {
    let plain = word.len() <= 32 && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    plain.then(|| format!("'{word}'"))
}

/// The parts that a list is merged from: each tenant's range of the index, or all of it.
fn parts<'a>(right: &'a Right, meta: &Meta) -> Vec<Option<&'a str>> {
    if right.all_tenants() { vec![None] } else { right.sees(meta.scope).into_iter().map(Some).collect() }
}

/// Where the first of the windows that are looked at ends, if one does before its part of the index.
async fn window_end(
    conn: &mut Conn,
    right: &Right,
    meta: &Meta,
    query: &ListQuery,
) -> Result<Option<Place>, Error> {
    let (driver, name) = (query.driver(), if query.driver() == Driver::Live { "d.name" } else { "''" });
    let mut first = None;
    for tenant in parts(right, meta) {
        let mut build = Builder::new(meta);
        build.sql = format!("SELECT {} AS id, {name} AS name FROM {} d", driver.id(), driver.table());
        build.driven(tenant, query);
        build.ordered(tenant, query);
        build.sql.push_str(&format!(" LIMIT 1 OFFSET {}", WINDOW - 1));
        let Some(row) = conn.row(&build.sql, &build.values).await? else { continue };
        let place = Place { name: row.text("name")?, id: row.text("id")? };
        let sooner = first.as_ref().is_none_or(|first: &Place| match query.by_name {
            true => place < *first,
            false => place.id < first.id,
        });
        if sooner {
            first = Some(place);
        }
    }
    Ok(first)
}

fn statement(right: &Right, meta: &Meta, query: &ListQuery, end: Option<&Place>) -> (String, Vec<Value>) {
    let mut build = Builder::new(meta);
    match parts(right, meta)[..] {
        [only] => select(&mut build, right, only, query, end),
        // Each tenant's range of the index is read by itself, and no further than a page: what is merged then
        // does not depend on the size of the table.
        ref parts => {
            for (nth, tenant) in parts.iter().enumerate() {
                let union = if nth == 0 { "" } else { " UNION ALL " };
                build.sql.push_str(&format!("{union}SELECT * FROM ("));
                select(&mut build, right, *tenant, query, end);
                build.sql.push_str(&format!(") AS part{nth}"));
            }
            let order = if query.by_name { "name, id" } else { "id" };
            build.sql.push_str(&format!(" ORDER BY {order}"));
            build.limit(query.limit);
        }
    }
    (build.sql, build.values)
}

/// A page of one part: of what the index answers, or of the window of it that is looked at.
fn select(build: &mut Builder, right: &Right, tenant: Option<&str>, query: &ListQuery, end: Option<&Place>) {
    let (driver, id) = (query.driver(), query.driver().id());
    let table = driver.table();
    if !query.asks_more(right) {
        build.sql.push_str(&match driver {
            Driver::Resource => format!("SELECT {COLUMNS} FROM resource r"),
            Driver::Live | Driver::Label => {
                format!("SELECT {COLUMNS} FROM {table} d JOIN resource r ON r.id = {id}")
            }
        });
        build.driven(tenant, query);
        build.others(query);
        build.ordered(tenant, query);
        return build.limit(query.limit);
    }
    let name = if driver == Driver::Live { ", d.name AS name" } else { "" };
    build.sql.push_str(&format!("SELECT {COLUMNS} FROM (SELECT {id} AS id{name} FROM {table} d"));
    build.driven(tenant, query);
    build.ordered(tenant, query);
    // A number, not a value: the planner should know how few they are.
    build
        .sql
        .push_str(&format!(" LIMIT {WINDOW}) AS d JOIN resource r ON r.id = d.id WHERE r.gone_at IS NULL"));
    build.others(query);
    match end {
        Some(end) if query.by_name => {
            build.values.push(end.name.as_str().into());
            build.and(&format!("(d.name, d.id) <= (${}, ?)", build.values.len()), end.id.as_str());
        }
        Some(end) => build.and("d.id <= ?", end.id.as_str()),
        None => {}
    }
    build.sql.push_str(if query.by_name { " ORDER BY d.name, d.id" } else { " ORDER BY d.id" });
    build.limit(query.limit);
}
