//! Allow or deny, with the reason. What was granted to a caller is asked about a thing, and the answer depends on
//! nothing else: no clock, no database, no request.
//!
//! Denied unless granted; an explicit denial stands over every grant; a limit (of a token) stands over both.

use std::collections::BTreeMap;

use super::ResourceCore;
use super::role::{ANY, Permission, VIEWS};

/// What a grant is about. What is not said is not asked: an empty area is everything everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// In this tenant; in the empty one are things that operators own. `None`: everywhere.
    pub tenant: Option<String>,
    /// Of one of these kinds.
    pub kinds: Vec<String>,
    /// With all of these tags.
    pub tags: BTreeMap<String, String>,
    /// The one of this id.
    pub object: Option<String>,
    /// Those that this user has made.
    pub owner: Option<String>,
}

/// That something may be done with some things, or may not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// For people: where it comes from.
    pub why: String,
    /// True: it may not.
    pub deny: bool,
    /// What.
    pub scopes: Vec<Permission>,
    /// What not, although the scopes say so.
    pub except: Vec<Permission>,
    /// With which things.
    pub area: Area,
    /// Its tenant is suspended: it lets one look, and do nothing.
    pub suspended: bool,
}

/// What is done by who only looks.
const LOOKING: [&str; 3] = ["get", "list", "watch"];

/// A thing that is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Thing<'a> {
    /// Its kind.
    pub kind: &'a str,
    /// Its tenant; empty for what operators own.
    pub tenant: &'a str,
    /// Its id.
    pub id: &'a str,
    /// Its tags. `None`: nobody knows them any more; then they give nothing and deny everything.
    pub tags: Option<&'a BTreeMap<String, String>>,
    /// Who made it; as for tags.
    pub owner: Option<&'a str>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, because.
    Allowed(String),
    /// No, because.
    Denied(String),
}

/// Whether a caller may come in at all to ask for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// There are things with which they may do it, or that they may at least see.
    Open,
    /// They know the tenant, but may not do this there.
    Refused,
    /// They know of nothing there.
    Hidden,
}

/// Of a list, what a caller sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Narrow {
    /// All of it.
    Whole,
    /// Nothing but some of these objects.
    Objects(Vec<String>),
    /// Nothing but some of those with these labels: `tag.env` is `dev`.
    Labels(Vec<(String, String)>),
    /// Each has to be looked at.
    Each,
}

/// The label by which what a user has made is found.
pub const OWNER_LABEL: &str = "owner";

/// All that a caller was granted and denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// In no order.
    pub grants: Vec<Grant>,
    /// What their credential is limited to.
    pub limit: Option<Grant>,
}

// === impl Area ===

impl Area {
    /// All of a tenant.
    pub fn tenant(name: &str) -> Area {
        Area { tenant: Some(name.to_owned()), ..Area::default() }
    }

    /// Whether a thing is within; `guess` where that depends on what nobody knows.
    fn holds(&self, thing: &Thing<'_>, guess: bool) -> bool {
        let tags = |tags: &BTreeMap<String, String>| {
            self.tags.iter().all(|(key, value)| tags.get(key) == Some(value))
        };
        self.reaches(thing.tenant)
            && self.has_kind(thing.kind)
            && self.object.as_deref().is_none_or(|id| id == thing.id)
            && (self.tags.is_empty() || thing.tags.map_or(guess, tags))
            && self.owner.as_deref().is_none_or(|who| thing.owner.map_or(guess, |owner| owner == who))
    }

    fn reaches(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|own| own == tenant)
    }

    fn has_kind(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|own| own == kind)
    }

    /// Whether a thing of this kind in this tenant can be within.
    fn touches(&self, kind: &str, tenant: &str) -> bool {
        self.reaches(tenant) && (kind == ANY || VIEWS.contains(&kind) || self.has_kind(kind))
    }

    /// Whether no thing of the kinds and the tenant is left out.
    fn is_whole(&self) -> bool {
        self.tags.is_empty() && self.object.is_none() && self.owner.is_none()
    }

    /// Whether all that is within the other is within this one.
    pub fn covers(&self, other: &Area) -> bool {
        (self.tenant.is_none() || self.tenant == other.tenant)
            && (self.kinds.is_empty()
                || (!other.kinds.is_empty() && other.kinds.iter().all(|kind| self.kinds.contains(kind))))
            && self.tags.iter().all(|(key, value)| other.tags.get(key) == Some(value))
            && (self.object.is_none() || self.object == other.object)
            && (self.owner.is_none() || self.owner == other.owner)
    }

    /// Whether something can be within both.
    pub fn meets(&self, other: &Area) -> bool {
        let one = |a: &Option<String>, b: &Option<String>| a.is_none() || b.is_none() || a == b;
        let kinds = self.kinds.is_empty()
            || other.kinds.is_empty()
            || self.kinds.iter().any(|kind| other.kinds.contains(kind));
        let tags =
            self.tags.iter().all(|(key, value)| other.tags.get(key).is_none_or(|there| there == value));
        one(&self.tenant, &other.tenant)
            && one(&self.object, &other.object)
            && one(&self.owner, &other.owner)
            && kinds
            && tags
    }
}

// === impl Grant ===

impl Grant {
    /// Whether it is about this verb with this kind.
    fn is_about(&self, kind: &str, verb: &str) -> bool {
        self.says(kind, verb) && (!self.suspended || LOOKING.contains(&verb))
    }

    /// The same, whether its tenant is suspended or not.
    fn says(&self, kind: &str, verb: &str) -> bool {
        self.scopes.iter().any(|one| one.matches(kind, verb))
            && !self.except.iter().any(|one| one.matches(kind, verb))
    }

    fn touches(&self, kind: &str, verb: &str, tenant: &str) -> bool {
        self.is_about(kind, verb) && self.area.touches(kind, tenant)
    }

    /// Whether it gives all that the other gives.
    fn covers(&self, other: &Grant) -> bool {
        let kept = |wanted: &Permission| {
            let left_out = |except: &Permission| other.except.iter().any(|one| one.covers(except));
            self.scopes.iter().any(|own| own.covers(wanted))
                && self.except.iter().filter(|except| except.meets(wanted)).all(left_out)
        };
        !self.suspended && self.area.covers(&other.area) && other.scopes.iter().all(kept)
    }

    /// Whether there is something that both are about.
    fn meets(&self, other: &Grant) -> bool {
        let scopes = self.scopes.iter().any(|own| other.scopes.iter().any(|one| one.meets(own)));
        scopes && self.area.meets(&other.area)
    }
}

// === impl Thing ===

impl<'a> Thing<'a> {
    /// An object; what operators made for all is asked about as if it were the asking tenant's.
    pub fn of(core: &'a ResourceCore, tenant: &'a str) -> Thing<'a> {
        let tenant = if core.tenant.is_empty() { tenant } else { &core.tenant };
        Thing { kind: &core.kind, tenant, id: &core.id, tags: Some(&core.tags), owner: Some(&core.owner) }
    }
}

// === impl Decision ===

impl Decision {
    /// Whether it is a yes.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allowed(_))
    }

    /// Why.
    pub fn why(&self) -> &str {
        match self {
            Decision::Allowed(why) | Decision::Denied(why) => why,
        }
    }
}

// === impl Access ===

impl Access {
    /// Whether `verb` may be done with a thing.
    pub fn decide(&self, verb: &str, thing: &Thing<'_>) -> Decision {
        self.decide_as(thing.kind, verb, thing)
    }

    /// The same of what belongs to a thing: its jobs (`job:cancel`), its events.
    pub fn decide_as(&self, kind: &str, verb: &str, thing: &Thing<'_>) -> Decision {
        match self.judge(kind, verb, thing) {
            Ok(grant) => Decision::Allowed(grant.why.clone()),
            Err(Some(grant)) => Decision::Denied(grant.why.clone()),
            Err(None) if self.stands_still(verb, kind, thing.tenant) => {
                Decision::Denied(format!("`{}` is suspended", thing.tenant))
            }
            Err(None) => Decision::Denied(format!("nothing gives you `{kind}:{verb}` there")),
        }
    }

    /// As `decide_as`, without words.
    pub fn allows(&self, kind: &str, verb: &str, thing: &Thing<'_>) -> bool {
        self.judge(kind, verb, thing).is_ok()
    }

    fn judge(&self, kind: &str, verb: &str, thing: &Thing<'_>) -> Result<&Grant, Option<&Grant>> {
        let about = |grant: &&Grant| grant.is_about(kind, verb);
        if let Some(limit) = &self.limit
            && !(limit.is_about(kind, verb) && limit.area.holds(thing, false))
        {
            return Err(Some(limit));
        }
        let denied = self.grants.iter().filter(|grant| grant.deny).filter(about);
        if let Some(grant) = denied.into_iter().find(|grant| grant.area.holds(thing, true)) {
            return Err(Some(grant));
        }
        let mut given = self.given().filter(about);
        given.find(|grant| grant.area.holds(thing, false)).ok_or(None)
    }

    fn given(&self) -> impl Iterator<Item = &Grant> {
        self.grants.iter().filter(|grant| !grant.deny)
    }

    /// Whether a caller may come in to ask for this: each object is judged when it is found.
    pub fn entry(&self, verb: &str, kind: &str, tenant: &str) -> Entry {
        let whole = matches!(verb, "create" | "list" | "watch") || kind == "quota";
        match () {
            () if kind == "job" && self.knows(tenant) => Entry::Open,
            () if self.touches(verb, kind, tenant) => Entry::Open,
            () if !whole && self.touches("get", kind, tenant) => Entry::Open,
            () if whole && self.knows(tenant) => Entry::Refused,
            () => Entry::Hidden,
        }
    }

    /// Whether there may be a thing in the tenant with which this may be done.
    pub fn touches(&self, verb: &str, kind: &str, tenant: &str) -> bool {
        self.given().any(|grant| grant.touches(kind, verb, tenant)) && self.leaves(verb, kind, tenant)
    }

    /// Whether there may be a thing in the tenant with which this is not denied.
    fn leaves(&self, verb: &str, kind: &str, tenant: &str) -> bool {
        let limited = self.limit.as_ref().is_some_and(|limit| !limit.touches(kind, verb, tenant));
        let shut = |grant: &Grant| grant.deny && grant.area.is_whole() && grant.touches(kind, verb, tenant);
        !limited && !self.grants.iter().any(shut)
    }

    /// Whether a caller knows that the tenant is there: something is granted to them in it.
    pub fn knows(&self, tenant: &str) -> bool {
        self.limit.as_ref().is_none_or(|limit| limit.area.reaches(tenant))
            && self.given().any(|grant| grant.area.owner.is_none() && grant.area.reaches(tenant))
    }

    /// The tenants in which something is granted, by name.
    pub fn tenants(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.given().filter_map(|grant| grant.area.tenant.as_deref()).collect();
        all.retain(|tenant| !tenant.is_empty() && self.knows(tenant));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The tenants in which they may come upon anything; `None`: in all.
    pub fn reach(&self) -> Option<Vec<String>> {
        let everywhere = self.given().any(|grant| grant.area.tenant.is_none());
        match self.limit.as_ref().and_then(|limit| limit.area.tenant.clone()) {
            Some(only) if everywhere => Some(vec![only]),
            None if everywhere => None,
            _ => Some(self.tenants().into_iter().map(str::to_owned).collect()),
        }
    }

    /// Of a list of things of a kind, what is worth looking at.
    pub fn narrow(&self, verb: &str, kind: &str, tenant: &str) -> Narrow {
        let limit = self.limit.as_ref().map(|limit| &limit.area);
        let given: Vec<&Area> =
            self.given().filter(|grant| grant.touches(kind, verb, tenant)).map(|grant| &grant.area).collect();
        let denied = self.grants.iter().any(|grant| grant.deny && grant.touches(kind, verb, tenant));
        if let Some(id) = limit.and_then(|limit| limit.object.clone()) {
            return Narrow::Objects(vec![id]);
        }
        if given.iter().any(|area| area.is_whole()) && !denied && limit.is_none_or(Area::is_whole) {
            return Narrow::Whole;
        }
        let objects: Option<Vec<String>> = given.iter().map(|area| area.object.clone()).collect();
        if let Some(objects) = objects.filter(|all| !all.is_empty()) {
            return Narrow::Objects(objects);
        }
        let labels = |area: &Area| {
            let tags = area.tags.iter().map(|(key, value)| (format!("tag.{key}"), value.clone()));
            let owner = area.owner.iter().map(|owner| (OWNER_LABEL.to_owned(), owner.clone()));
            tags.chain(owner).collect::<Vec<_>>()
        };
        let mut of_all = limit.map(labels).unwrap_or_default();
        if let [only] = given[..] {
            of_all.extend(labels(only));
            of_all.dedup();
        }
        if of_all.is_empty() { Narrow::Each } else { Narrow::Labels(of_all) }
    }

    /// Whether it is only because the tenant is suspended that this cannot be done there.
    pub fn stands_still(&self, verb: &str, kind: &str, tenant: &str) -> bool {
        let gave =
            |grant: &Grant| grant.suspended && grant.says(kind, verb) && grant.area.touches(kind, tenant);
        self.given().any(gave) && self.leaves(verb, kind, tenant) && !self.touches(verb, kind, tenant)
    }

    /// Those of the tenants that are suspended.
    pub fn suspended(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self
            .given()
            .filter(|grant| grant.suspended)
            .filter_map(|grant| grant.area.tenant.as_deref())
            .collect();
        all.retain(|tenant| self.knows(tenant));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// All grants of these tenants let one look from now on, and do nothing.
    pub fn suspend(&mut self, tenants: &[String]) {
        for grant in self.grants.iter_mut().filter(|grant| !grant.deny) {
            grant.suspended = grant.area.tenant.as_ref().is_some_and(|tenant| tenants.contains(tenant));
        }
    }

    /// True if the tenant has nothing that is hidden from them.
    pub fn sees_all(&self, tenant: &str) -> bool {
        let all = |grant: &&Grant| {
            let reads = |one: &Permission| one.kind == ANY && (one.verb == ANY || one.verb == "get");
            grant.area.is_whole()
                && grant.area.kinds.is_empty()
                && grant.area.reaches(tenant)
                && grant.scopes.iter().any(reads)
                && !grant.except.iter().any(|one| one.verb == ANY || one.verb == "get")
        };
        let hides = |grant: &Grant| grant.deny && grant.area.reaches(tenant);
        self.limit.as_ref().is_none_or(|limit| all(&limit))
            && self.given().any(|grant| all(&grant))
            && !self.grants.iter().any(hides)
    }

    /// True if they may do everything everywhere, and nothing limits that.
    pub fn is_operator(&self) -> bool {
        let all = Permission { kind: ANY.to_owned(), verb: ANY.to_owned() };
        let everything = |grant: &Grant| {
            grant.area == Area::default() && grant.except.is_empty() && grant.scopes.contains(&all)
        };
        self.limit.is_none() && self.given().any(everything) && !self.grants.iter().any(|grant| grant.deny)
    }

    /// Whether they have all that these give, so that they may give it to others: what they were denied, or what
    /// is only theirs together, they cannot give.
    pub fn can_give(&self, all: &[Grant]) -> Result<(), String> {
        for wanted in all {
            let scopes = || wanted.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if let Some(limit) = self.limit.as_ref().filter(|limit| !limit.covers(wanted)) {
                return Err(format!("it gives {}: {}", scopes(), limit.why));
            }
            if let Some(denied) = self.grants.iter().find(|grant| grant.deny && grant.meets(wanted)) {
                return Err(format!("it gives {}, of which you were denied some: {}", scopes(), denied.why));
            }
            if !self.given().any(|own| own.covers(wanted)) {
                return Err(format!("it gives {}, which is more than you have there yourself", scopes()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
