//! From what an authenticator knows of somebody to a `Caller`: the same few settings for all of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::Verdict;
use crate::kernel::caller::SecondFactor;
use crate::kernel::{Caller, Timestamp};

/// The longest name, subject or group that is taken.
pub const LONGEST: usize = 256;
/// More groups than this are nobody's.
const MOST_GROUPS: usize = 1000;
/// What somebody showed who has shown nothing but what they know.
pub const PASSWORD: &str = "password";
/// What the server calls itself and its own operator: nobody else is called so.
const OURS: [&str; 2] = ["system", "operator"];

/// What an authenticator found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Person {
    /// What they are called.
    pub name: String,
    /// Who they are for good; empty: the name is all there is.
    pub subject: String,
    /// In the authenticator's words.
    pub groups: Vec<String>,
    /// The login that it comes from.
    pub session: Option<String>,
    /// When it was issued, if it says so.
    pub issued: Option<Timestamp>,
    /// What was shown: `PASSWORD`.
    pub credential: &'static str,
}

/// Who is an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Operators {
    /// By name.
    pub names: BTreeSet<String>,
    /// By group, as it is called here.
    pub groups: BTreeSet<String>,
}

/// What the configuration says of everybody whom one authenticator knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The authenticator's configured name.
    pub authenticator: String,
    /// Known in this tenant only.
    pub tenant: Option<String>,
    /// Who may do everything.
    pub operators: Operators,
    /// Groups that are called otherwise here; others keep their names.
    pub groups: BTreeMap<String, String>,
    /// Whether passwords alone are enough.
    pub second_factor: SecondFactor,
}

impl Terms {
    /// Whether those whom it knows can be let in on the domain of this tenant; all can on the server's own.
    pub fn serves(&self, domain: Option<&str>) -> bool {
        domain.is_none() || self.tenant.as_deref() == domain
    }

    /// Somebody who was known, by what is said of them now.
    pub fn again(&self, kept: &Caller) -> Verdict {
        let Caller { name, subject, groups, session, issued, .. } = kept.clone();
        // Groups are called as they are here already, and what is nobody's name here is not changed again.
        let groups = groups.into_iter().collect::<BTreeSet<_>>();
        let plain = Terms { groups: BTreeMap::new(), ..self.clone() };
        let groups = groups.into_iter().collect();
        let person = Person { name, subject, groups, session, issued, credential: PASSWORD };
        plain.caller(person)
    }

    /// The caller that this person is.
    pub fn caller(&self, person: Person) -> Verdict {
        let words = [&person.name, &person.subject].into_iter().chain(&person.groups);
        if person.name.is_empty()
            || person.groups.len() > MOST_GROUPS
            || words.into_iter().any(|word| bad(word))
        {
            return Verdict::Refused(
                "who you are cannot be told: a name, subject or group is empty, too long or not printable"
                    .into(),
            );
        }
        let renamed = |group: String| self.groups.get(&group).cloned().unwrap_or(group);
        let groups: BTreeSet<String> = person.groups.into_iter().map(renamed).collect();
        let operator = self.tenant.is_none()
            && (self.operators.names.contains(&person.name) || !groups.is_disjoint(&self.operators.groups));
        let subject = if person.subject.is_empty() { person.name.clone() } else { person.subject };
        let name = if OURS.contains(&person.name.as_str()) {
            format!("{}@{}", person.name, self.authenticator)
        } else {
            person.name
        };
        Verdict::Caller(Caller {
            name,
            credential: format!("{}/{}", self.authenticator, person.credential),
            operator,
            authenticator: self.authenticator.clone(),
            subject,
            groups: groups.into_iter().collect(),
            only_in: self.tenant.clone(),
            session: person.session,
            issued: person.issued,
            second_factor: (person.credential == PASSWORD).then_some(self.second_factor),
            ..Caller::default()
        })
    }
}

/// Whether it is no word that can name somebody, or a login.
pub(super) fn bad(word: &str) -> bool {
    word.len() > LONGEST || word.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms {
            authenticator: "staff".into(),
            operators: Operators { names: ["root".to_owned()].into(), groups: ["ops".to_owned()].into() },
            groups: [("/cloud/admins".to_owned(), "ops".to_owned())].into(),
            ..Terms::default()
        }
    }

    fn person(name: &str, groups: &[&str]) -> Person {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Person { name: name.into(), groups, credential: "password", ..Person::default() }
    }

    fn caller(terms: &Terms, person: Person) -> Caller {
        match terms.caller(person) {
            Verdict::Caller(caller) => caller,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn groups_are_renamed_and_may_make_operators() {
        let anna = caller(&terms(), person("anna", &["/cloud/admins", "dev"]));
        assert!(anna.operator);
        assert_eq!(anna.groups, ["dev", "ops"]);
        assert_eq!((anna.subject.as_str(), anna.credential.as_str()), ("anna", "staff/password"));
        assert_eq!(anna.second_factor, Some(SecondFactor::IfEnrolled));
        let by_token = Person { credential: "token", ..person("anna", &[]) };
        assert_eq!(caller(&terms(), by_token).second_factor, None);
        assert!(caller(&terms(), person("root", &[])).operator);
        assert!(!caller(&terms(), person("bert", &["dev"])).operator);
    }

    #[test]
    fn a_tenants_realm_makes_no_operators() {
        let terms = Terms { tenant: Some("acme".into()), ..terms() };
        let root = caller(&terms, person("root", &["ops"]));
        assert!(!root.operator);
        assert_eq!(root.only_in.as_deref(), Some("acme"));
    }

    #[test]
    fn nobody_is_called_as_the_server_is() {
        assert_eq!(caller(&terms(), person("system", &[])).name, "system@staff");
        for bad in ["", "a\nb", &"x".repeat(300)] {
            assert!(matches!(terms().caller(person(bad, &[])), Verdict::Refused(_)), "{bad:?}");
        }
    }
}
