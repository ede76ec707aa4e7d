//! Conversations with a directory: its connections, how somebody is found, and how a password is proven.

use std::sync::{Arc, Mutex, PoisonError};

use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry, SearchOptions, StdStream};

use super::settings::{People, Plan, dn_of, filled};
use crate::auth::header::Basic;
use crate::auth::person::{PASSWORD, Person};
use crate::outbound::Outbound;

/// Groups of somebody that are read at most.
const MOST_GROUPS: i32 = 1000;

/// Answers of a bind that mean: not with this name and password (RFC 4511, appendix A).
const NO_ENTRY: u32 = 32;
const BAD_DN: u32 = 34;
const NO_PASSWORD: u32 = 48;
const WRONG: u32 = 49;
const NOT_NOW: u32 = 53;
/// Some directories say these of an account that is locked, or must not log in.
const LOCKED: u32 = 19;
const NOT_ALLOWED: u32 = 50;
/// A search found more than was asked for.
const TOO_MANY: u32 = 4;

/// What came of looking for somebody.
#[derive(Debug)]
pub enum Found {
    /// Right.
    Person(Person),
    /// There is none of this name, or the password is another.
    Nobody,
    /// Right, and the entry does not say what must be known.
    Unusable(String),
}

/// Why the directory cannot tell.
#[derive(Debug)]
pub enum Away {
    /// The connection broke off: another one may do.
    Lost(String),
    /// Another one would not help.
    Cannot(String),
    /// More was found than anybody wants: this is about whoever asks, and no fault of the directory.
    TooMuch,
}

/// A directory, and the connections that are held to it.
pub struct Directory {
    plan: Plan,
    outbound: Arc<Outbound>,
    /// As the service: people and groups are looked for with these only.
    searching: Mutex<Vec<Ldap>>,
    /// As whoever came last: each use begins with a bind.
    proving: Mutex<Vec<Ldap>>,
}

impl Directory {
    /// Nobody is called yet.
    pub fn new(plan: Plan, outbound: Arc<Outbound>) -> Directory {
        Directory { plan, outbound, searching: Mutex::default(), proving: Mutex::default() }
    }

    /// Whose name and password that is. Connections that were idle may have been closed over there: then all is asked
    /// once more, with new ones.
    pub async fn person(&self, pair: &Basic) -> Result<Found, Away> {
        match self.once(pair).await {
            Err(Away::Lost(_)) => {
                for idle in [&self.searching, &self.proving] {
                    idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                self.once(pair).await
            }
            told => told,
        }
    }

    async fn once(&self, pair: &Basic) -> Result<Found, Away> {
        match &self.plan.people {
            People::Searched { base, filter } => {
                self.searched(pair, base, &filled(filter, &pair.user, "")).await
            }
            People::Named(template) => self.named(pair, &dn_of(template, &pair.user)).await,
        }
    }

    /// Looks for the entry, then binds as it.
    async fn searched(&self, pair: &Basic, base: &str, filter: &str) -> Result<Found, Away> {
        let mut searching = self.searcher().await?;
        let found = self.search(&mut searching, base, Scope::Subtree, filter, &self.wanted(), 2).await?;
        let told = match <[SearchEntry; 1]>::try_from(found) {
            Ok([one]) => match self.proven(&one.dn, &pair.password).await? {
                Some(proving) => {
                    keep(&self.proving, proving, self.plan.connections);
                    self.described(&mut searching, pair, one).await?
                }
                None => Found::Nobody,
            },
            Err(others) => {
                if !others.is_empty() {
                    tracing::warn!("two people of one name are in the directory: neither gets in");
                }
                Found::Nobody
            }
        };
        keep(&self.searching, searching, self.plan.connections);
        Ok(told)
    }

    /// Binds as the entry whose name is known, then looks at it: as themselves, unless somebody was named for that.
    async fn named(&self, pair: &Basic, dn: &str) -> Result<Found, Away> {
        let Some(mut proving) = self.proven(dn, &pair.password).await? else { return Ok(Found::Nobody) };
        if self.plan.service.is_none() {
            let told = self.looked_at(&mut proving, pair, dn).await?;
            keep(&self.proving, proving, self.plan.connections);
            return Ok(told);
        }
        keep(&self.proving, proving, self.plan.connections);
        let mut searching = self.searcher().await?;
        let told = self.looked_at(&mut searching, pair, dn).await?;
        keep(&self.searching, searching, self.plan.connections);
        Ok(told)
    }

    async fn looked_at(&self, ldap: &mut Ldap, pair: &Basic, dn: &str) -> Result<Found, Away> {
        let found = self.search(ldap, dn, Scope::Base, "(objectClass=*)", &self.wanted(), 1).await?;
        match found.into_iter().next() {
            Some(one) => self.described(ldap, pair, one).await,
            None => Ok(Found::Unusable("your entry cannot be read".to_owned())),
        }
    }

    /// What of an entry is asked for.
    fn wanted(&self) -> Vec<&str> {
        let plan = &self.plan;
        let more = [Some(&plan.subject_attribute).filter(|it| !it.is_empty()), plan.member_of.as_ref()];
        [plan.name_attribute.as_str()]
            .into_iter()
            .chain(more.into_iter().flatten().map(String::as_str))
            .collect()
    }

    /// The person of an entry whose password was right.
    async fn described(&self, ldap: &mut Ldap, pair: &Basic, entry: SearchEntry) -> Result<Found, Away> {
        let plan = &self.plan;
        let names = values(&entry, &plan.name_attribute);
        // As it is written there: the directory may not care for upper and lower case, and rights do.
        let same = names.iter().find(|name| name.to_lowercase() == pair.user.to_lowercase());
        let name = match (names.as_slice(), same) {
            ([one], _) => one.clone(),
            // Of several names each would be another person, unless something else says who it is.
            (_, Some(same)) if !plan.subject_attribute.is_empty() => same.clone(),
            _ => return Ok(Found::Unusable(format!("your entry must have one `{}`", plan.name_attribute))),
        };
        let subject = match plan.subject_attribute.as_str() {
            "" => String::new(),
            attribute => match values(&entry, attribute).into_iter().next() {
                Some(subject) => subject,
                None => return Ok(Found::Unusable(format!("your entry has no `{attribute}`"))),
            },
        };
        let mut groups = plan.member_of.as_ref().map(|it| values(&entry, it)).unwrap_or_default();
        if let Some(asked) = &plan.groups {
            let filter = filled(&asked.filter, &name, &entry.dn);
            let attributes = [asked.attribute.as_str()];
            let found =
                self.search(ldap, &asked.base, Scope::Subtree, &filter, &attributes, MOST_GROUPS).await;
            if matches!(found, Err(Away::TooMuch)) {
                let why = "you are in more groups than the directory tells of, or than 1000";
                return Ok(Found::Unusable(why.to_owned()));
            }
            let found = found?;
            groups.extend(found.iter().flat_map(|group| values(group, &asked.attribute)));
        }
        Ok(Found::Person(Person { name, subject, groups, credential: PASSWORD, ..Person::default() }))
    }

    // === connections ===

    async fn search(
        &self,
        ldap: &mut Ldap,
        base: &str,
        scope: Scope,
        filter: &str,
        attributes: &[&str],
        most: i32,
    ) -> Result<Vec<SearchEntry>, Away> {
        let options =
            SearchOptions::new().sizelimit(most).timelimit(self.plan.time.as_secs().try_into().unwrap_or(30));
        let answered = ldap.with_search_options(options).search(base, scope, filter, attributes).await;
        let answered = answered.map_err(away)?;
        match answered.1.rc {
            0 => {}
            TOO_MANY if most == 2 => {}
            TOO_MANY => return Err(Away::TooMuch),
            code => {
                return Err(Away::Cannot(format!("searching below `{base}` is answered with code {code}")));
            }
        }
        // What is elsewhere (a referral) is not gone to: that would show a password to whoever is named there.
        let here = answered.0.into_iter().filter(|entry| !entry.is_ref() && !entry.is_intermediate());
        Ok(here.map(SearchEntry::construct).collect())
    }

    /// A connection of this person, if the password is right.
    async fn proven(&self, dn: &str, password: &str) -> Result<Option<Ldap>, Away> {
        // An empty password would be the bind of nobody, which is right whoever asks (RFC 4513, 5.1.2).
        if dn.is_empty() || password.is_empty() {
            return Ok(None);
        }
        let mut ldap = match taken(&self.proving) {
            Some(ldap) => ldap,
            None => self.connect().await?,
        };
        match ldap.simple_bind(dn, password).await.map_err(away)?.rc {
            0 => Ok(Some(ldap)),
            NO_ENTRY | BAD_DN | LOCKED | NO_PASSWORD | WRONG | NOT_ALLOWED | NOT_NOW => {
                keep(&self.proving, ldap, self.plan.connections);
                Ok(None)
            }
            code => Err(Away::Cannot(format!("a bind is answered with code {code}"))),
        }
    }

    /// A connection of the service.
    async fn searcher(&self) -> Result<Ldap, Away> {
        if let Some(ldap) = taken(&self.searching) {
            return Ok(ldap);
        }
        let mut ldap = self.connect().await?;
        if let Some((dn, password)) = &self.plan.service {
            let code = ldap.simple_bind(dn, password).await.map_err(away)?.rc;
            if code != 0 {
                return Err(Away::Cannot(format!("`bind_dn` is answered with code {code}")));
            }
        }
        Ok(ldap)
    }

    async fn connect(&self) -> Result<Ldap, Away> {
        let plan = &self.plan;
        let stream = self
            .outbound
            .tcp(&plan.host, plan.port)
            .await
            .map_err(|error| Away::Cannot(error.to_string()))?;
        let stream = stream.into_std().map_err(|error| Away::Cannot(error.to_string()))?;
        let mut settings =
            LdapConnSettings::new().set_starttls(plan.start_tls).set_std_stream(StdStream::Tcp(stream));
        if let Some(tls) = &plan.tls {
            settings = settings.set_config(tls.clone());
        }
        let made = LdapConnAsync::from_url_with_settings(settings, &plan.url).await;
        let (connection, ldap) = made.map_err(|error| Away::Cannot(error.to_string()))?;
        // It ends when the last handle is dropped, or the directory closes it.
        tokio::spawn(async move {
            if let Err(error) = connection.drive().await {
                tracing::debug!(%error, "a connection to a directory broke off");
            }
        });
        Ok(ldap)
    }
}

/// An idle connection that is not known to be closed.
fn taken(idle: &Mutex<Vec<Ldap>>) -> Option<Ldap> {
    let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
    std::iter::from_fn(|| idle.pop()).find_map(|mut ldap| (!ldap.is_closed()).then_some(ldap))
}

fn keep(idle: &Mutex<Vec<Ldap>>, ldap: Ldap, most: usize) {
    let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
    if idle.len() < most {
        idle.push(ldap);
    }
}

fn away(error: LdapError) -> Away {
    let text = error.to_string();
    match error {
        LdapError::Io { .. }
        | LdapError::OpSend { .. }
        | LdapError::ResultRecv { .. }
        | LdapError::IdScrubSend { .. }
        | LdapError::MiscSend { .. }
        | LdapError::EndOfStream => Away::Lost(text),
        _ => Away::Cannot(text),
    }
}

/// The values of an attribute, however its name is written. What is no text is given in hex, and always for
/// `objectGUID`: by chance it may be text.
fn values(entry: &SearchEntry, attribute: &str) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let is_it = |key: &String| key.eq_ignore_ascii_case(attribute);
    let never_text = attribute.eq_ignore_ascii_case("objectGUID");
    let texts = entry.attrs.iter().filter(|(key, _)| is_it(key)).flat_map(|(_, values)| values);
    let texts = texts.map(|text| if never_text { hex(text.as_bytes()) } else { text.clone() });
    let others = entry.bin_attrs.iter().filter(|(key, _)| is_it(key)).flat_map(|(_, values)| values);
    texts.chain(others.map(|bytes| hex(bytes))).collect()
}
