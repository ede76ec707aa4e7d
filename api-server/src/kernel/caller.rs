//! Who asks, and what they hold.
//!
//! A `Right` is a value: functions that read or write objects of a tenant demand one, and only the policy
//! makes one. Without it no query compiles.

use std::sync::Arc;

use super::policy::{Access, Entry, Narrow, Thing};
use super::{Error, ResourceCore, Scope, Timestamp};

/// Who is asking, as an authenticator found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// For history: `operator`, `anna`.
    pub name: String,
    /// Which credential was shown: `operator-token`.
    pub credential: String,
    /// May do everything.
    pub operator: bool,
    /// The configured name of the authenticator that knew them; empty for those of the server itself.
    pub authenticator: String,
    /// Who they are to that authenticator, for as long as they are known there, whatever they are called.
    pub subject: String,
    /// Groups and roles that the authenticator says they have, in its own words.
    pub groups: Vec<String>,
    /// Known in this tenant only, as users of a realm of its own are.
    pub only_in: Option<String>,
    /// The authenticator's name of the login that the credential comes from, which may end before it.
    pub session: Option<String>,
    /// When the credential was issued, if it says so, by the clock of whoever did: an end of all their logins takes
    /// along what was issued until then.
    pub issued: Option<Timestamp>,
    /// What is kept of the API token that they show, if that is how they came.
    pub token: Option<String>,
    /// What is kept of the browser session by whose cookie they came, if that is how.
    pub browser: Option<String>,
    /// They came by a password: whether a code must come with it. `None`: by something that is no password.
    pub second_factor: Option<SecondFactor>,
    /// Id of their user; empty for those of the server itself, and before the store has looked.
    pub user: String,
    /// What they may do, once the store has looked. Nothing, until then.
    pub access: Option<Arc<Access>>,
}

/// When a code is demanded with a password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecondFactor {
    /// From whoever has set that up.
    #[default]
    IfEnrolled,
    /// From everybody; who has not set it up can do nothing else.
    Required,
}

/// The proof that a caller may do `verb` with objects of `kind` in `tenant` (empty: the operators' own). With which of
/// them is settled when they are found: `judge`.
#[derive(Clone, Debug)]
pub struct Right {
    caller: Caller,
    verb: String,
    kind: String,
    tenant: String,
    all_tenants: bool,
    /// It looks at nothing but what a write of ours has just made.
    own_write: bool,
}

/// Whose rows the database itself lets somebody come upon, whatever they may do: a second wall behind the rights. It
/// follows from what was granted to them, and not from what is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wall {
    /// Everybody's.
    Open,
    /// Those of these tenants, and what operators own.
    Around(Vec<String>),
}

impl Wall {
    /// As the database reads it: `,acme,beta,`; `*` for all.
    pub fn text(&self) -> String {
        let plain =
            |name: &&String| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        match self {
            Wall::Open => "*".to_owned(),
            Wall::Around(tenants) => {
                tenants.iter().filter(plain).fold(",".to_owned(), |text, name| format!("{text}{name},"))
            }
        }
    }

    /// Whether what is a tenant's is within.
    pub fn lets(&self, tenant: &str) -> bool {
        match self {
            Wall::Open => true,
            Wall::Around(tenants) => tenant.is_empty() || tenants.iter().any(|one| one == tenant),
        }
    }
}

impl Caller {
    /// One who may do everything.
    pub fn operator(name: impl Into<String>, credential: impl Into<String>) -> Caller {
        Caller { name: name.into(), credential: credential.into(), operator: true, ..Caller::default() }
    }

    /// The system itself: seeds, sweeps, the images folder.
    pub fn system() -> Caller {
        Caller::operator("system", "none")
    }

    /// By what they are told apart from all others, whatever they are called.
    pub fn identity(&self) -> &str {
        if self.user.is_empty() { &self.name } else { &self.user }
    }

    /// Asks the literal question: may this caller do `verb` with `kind` in `tenant`?
    ///
    /// Who may not even see it gets `Hidden`, which is told the same as what does not exist.
    pub fn may(&self, verb: &str, kind: &str, tenant: &str) -> Result<Right, Error> {
        if self.stands_still(verb, kind, tenant) {
            return Err(Error::Suspended(tenant.to_owned()));
        }
        match self.entry(verb, kind, tenant) {
            Entry::Open => Ok(self.right(verb, kind, tenant, false)),
            Entry::Refused => Err(Error::Denied(format!("your rights do not include `{kind}:{verb}` here"))),
            Entry::Hidden => Err(Error::Hidden { verb: verb.to_owned(), kind: kind.to_owned() }),
        }
    }

    /// As `may`, over all tenants: operators' lists.
    pub fn may_everywhere(&self, verb: &str, kind: &str) -> Result<Right, Error> {
        self.may(verb, kind, "")?;
        Ok(self.right(verb, kind, "", true))
    }

    fn right(&self, verb: &str, kind: &str, tenant: &str, all_tenants: bool) -> Right {
        let text = str::to_owned;
        let (verb, kind, tenant) = (text(verb), text(kind), text(tenant));
        Right { caller: self.clone(), verb, kind, tenant, all_tenants, own_write: false }
    }

    fn entry(&self, verb: &str, kind: &str, tenant: &str) -> Entry {
        match &self.access {
            _ if self.operator => Entry::Open,
            Some(access) => access.entry(verb, kind, tenant),
            None => Entry::Hidden,
        }
    }

    /// Whether it is only because the tenant is suspended that they may not do this there.
    fn stands_still(&self, verb: &str, kind: &str, tenant: &str) -> bool {
        let asked = |access: &Arc<Access>| access.stands_still(verb, kind, tenant);
        !self.operator && self.access.as_ref().is_some_and(asked)
    }

    /// Whether they may do this with this object, which they came upon in a tenant.
    pub fn lets(&self, verb: &str, object: &ResourceCore, tenant: &str) -> bool {
        let asked = |access: &Arc<Access>| access.allows(&object.kind, verb, &Thing::of(object, tenant));
        self.operator || self.access.as_ref().is_some_and(asked)
    }

    /// Whether they know that there is this tenant.
    pub fn knows(&self, tenant: &str) -> bool {
        self.operator || self.access.as_ref().is_some_and(|access| access.knows(tenant))
    }
}

impl Right {
    /// Who holds it.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The wall around whoever holds it, as far as its tenant: what is known of them elsewhere is of no use here.
    pub fn wall(&self) -> Wall {
        let Some(access) = &self.caller.access else {
            return if self.caller.operator { Wall::Open } else { Wall::Around(Vec::new()) };
        };
        let Some(mut tenants) = access.reach() else { return Wall::Open };
        tenants.retain(|one| self.all_tenants || self.tenant.is_empty() || *one == self.tenant);
        Wall::Around(tenants)
    }

    /// The tenant that it is about; empty for what operators own.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The same right over all tenants: to look at what a transaction of ours has written.
    pub(crate) fn everywhere(&self) -> Right {
        Right { all_tenants: true, own_write: true, ..self.clone() }
    }

    /// True for a list over all tenants.
    pub fn all_tenants(&self) -> bool {
        self.all_tenants
    }

    /// Whose objects of a kind of this scope it lets one see: its tenant's, and those that operators made for all.
    pub fn sees(&self, scope: Scope) -> Vec<&str> {
        match scope {
            Scope::Both if !self.tenant.is_empty() => vec![&self.tenant, ""],
            _ => vec![&self.tenant],
        }
    }

    /// Refuses what it lets one see, but not change.
    pub fn may_change(&self, object: &ResourceCore) -> Result<(), Error> {
        if self.all_tenants || object.tenant == self.tenant {
            return Ok(());
        }
        Err(Error::Denied(format!(
            "this {} is there for all tenants: it is operators who change it or look behind it, by its own path",
            object.kind
        )))
    }

    /// Whether it is about this object, which was found where it leads: what may not be seen is not there, what may be
    /// seen is refused.
    pub fn judge(&self, object: &ResourceCore) -> Result<(), Error> {
        let Some(access) = self.asks() else { return Ok(()) };
        let thing = Thing::of(object, &self.tenant);
        let allowed = access.allows(&object.kind, &self.verb, &thing);
        if allowed && (self.verb == "create" || access.allows(&object.kind, "get", &thing)) {
            return Ok(());
        }
        if !access.allows(&object.kind, "get", &thing) {
            return Err(Error::Hidden { verb: self.verb.clone(), kind: object.kind.clone() });
        }
        Err(self.refusal(access.decide(&self.verb, &thing).why()))
    }

    /// Whether the right is still there for an object as a write has left it: nobody takes a thing out of what was
    /// theirs, or makes one outside of it.
    pub fn judge_written(&self, object: &ResourceCore) -> Result<(), Error> {
        let Some(access) = self.asks() else { return Ok(()) };
        match access.decide(&self.verb, &Thing::of(object, &self.tenant)) {
            decision if decision.is_allowed() => Ok(()),
            decision => Err(self.refusal(&format!("as it would be then, {}", decision.why()))),
        }
    }

    /// Whether it shows something of an object's that has the verbs of a view: its job, its event.
    pub fn shows(&self, thing: &Thing<'_>) -> bool {
        let Some(access) = self.asks() else { return true };
        // Whoever sees an object sees its jobs.
        let view = self.kind == "job" || access.allows(&self.kind, &self.verb, thing);
        view && access.allows(thing.kind, "get", thing)
    }

    /// Whether one may do with a job what the right says, and so with its object what the job does.
    pub fn judge_job(&self, thing: &Thing<'_>, does: &str) -> Result<(), Error> {
        let Some(access) = self.asks() else { return Ok(()) };
        if !self.shows(thing) {
            return Err(Error::Hidden { verb: self.verb.clone(), kind: "job".to_owned() });
        }
        if self.kind != "job" || matches!(self.verb.as_str(), "get" | "list") {
            return Ok(());
        }
        for decision in [access.decide_as("job", &self.verb, thing), access.decide(does, thing)] {
            if !decision.is_allowed() {
                return Err(self.refusal(decision.why()));
            }
        }
        Ok(())
    }

    /// True if there is nothing in its tenant that is hidden from whoever holds it.
    pub fn sees_all(&self) -> bool {
        self.asks().is_none_or(|access| access.sees_all(&self.tenant))
    }

    /// True if each thing that it is about has to be judged.
    pub fn asks_of_each(&self) -> bool {
        self.asks().is_some()
    }

    /// What of a list it leads to.
    pub fn narrow(&self, kind: &str) -> Narrow {
        self.asks().map_or(Narrow::Whole, |access| access.narrow("list", kind, &self.tenant))
    }

    /// Whether an object is in the lists that it leads to.
    pub fn lists(&self, object: &ResourceCore) -> bool {
        let thing = Thing::of(object, &self.tenant);
        let listed = |verb: &str| self.asks().is_none_or(|access| access.allows(&object.kind, verb, &thing));
        listed("list") && listed("get")
    }

    /// Who has to be asked about each object; nobody, for those who may do everything.
    fn asks(&self) -> Option<&Access> {
        static NOTHING: Access = Access { grants: Vec::new(), limit: None };
        let all = self.caller.operator || self.own_write;
        if all { None } else { Some(self.caller.access.as_deref().unwrap_or(&NOTHING)) }
    }

    fn refusal(&self, why: &str) -> Error {
        Error::Denied(format!("you may not {} this {}: {why}", self.verb, self.kind))
    }
}
