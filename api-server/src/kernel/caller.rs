//! Who asks, and what they hold.
//!
//! A `Right` is a value: functions that read or write objects of a tenant demand one, and only the policy
//! below makes one. Without it no query compiles.

use super::{Error, ResourceCore, Scope};

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
}

/// The proof that a caller may do `verb` with objects of `kind` in `tenant` (empty: the operators' own).
#[derive(Clone, Debug)]
pub struct Right {
    caller: Caller,
    tenant: String,
    all_tenants: bool,
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

    /// Asks the literal question: may this caller do `verb` with `kind` in `tenant`?
    ///
    /// Who may not even see it gets `Hidden`, which is told the same as what does not exist.
    pub fn may(&self, verb: &str, kind: &str, tenant: &str) -> Result<Right, Error> {
        if !self.operator {
            return Err(Error::Hidden { verb: verb.to_owned(), kind: kind.to_owned() });
        }
        Ok(Right { caller: self.clone(), tenant: tenant.to_owned(), all_tenants: false })
    }

    /// As `may`, over all tenants: operators' lists.
    pub fn may_everywhere(&self, verb: &str, kind: &str) -> Result<Right, Error> {
        let right = self.may(verb, kind, "")?;
        Ok(Right { all_tenants: true, ..right })
    }
}

impl Right {
    /// Who holds it.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The tenant that it is about; empty for what operators own.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The same right over all tenants: to look at what a transaction of ours has written.
    pub(crate) fn everywhere(&self) -> Right {
        Right { all_tenants: true, ..self.clone() }
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
}
