//! What callers may do, kept in memory and true: a change of any member, role, binding, token or user rings a bell here
//! and on all other servers, and what was kept is read again. Should a bell be lost, the name of the present state is
//! looked at before anything is believed that was last confirmed a second ago: no right outlives its end by more. If
//! the database cannot be asked then, nobody comes in.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;

use super::db::{Conn, values};
use super::objects::{self, COLUMNS};
use super::tx::list;
use super::{Store, grants, second_factor, suspend};
use crate::kernel::policy::{Access, Area, Grant};
use crate::kernel::role::{Permission, RIGHTS};
use crate::kernel::{Caller, Error, Right, Stored, Timestamp};

/// The longest that a right is believed in without having looked.
pub const RIGHTS_STALE: Duration = Duration::from_secs(1);
/// More people than these are not kept at once.
const MOST: usize = 10_000;

/// What is kept.
#[derive(Default)]
pub(super) struct Rights {
    state: Mutex<State>,
    /// Held by who asks the database whether it is still true.
    asking: tokio::sync::Mutex<()>,
    /// When the last use of a token was last written, by its id.
    pub(super) used: Mutex<BTreeMap<String, Duration>>,
}

#[derive(Default)]
struct State {
    now: Stamp,
    confirmed: Option<Duration>,
    people: HashMap<Key, Arc<Known>>,
}

/// Which state of all rights it was.
#[derive(Clone, Default, PartialEq, Eq)]
struct Stamp {
    rung: u64,
    epoch: String,
}

/// Somebody, with what they said.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    authenticator: String,
    subject: String,
    groups: Vec<String>,
    only_in: Option<String>,
    token: Option<String>,
}

/// Who somebody is, and what they may do.
struct Known {
    user: String,
    /// They are known in this tenant only, or came by a token that is good there only.
    only_in: Option<String>,
    disabled: bool,
    access: Arc<Access>,
    token: Option<ApiToken>,
    /// A code must come with their password.
    second_factor: bool,
}

/// The token that somebody came with.
struct ApiToken {
    id: String,
    name: String,
    /// What its maker is called.
    maker: String,
    networks: Vec<IpNet>,
    until: Option<Timestamp>,
}

/// Somebody who is not let in.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: Error,
    /// Who it was, as far as that is known.
    pub caller: Caller,
}

impl Key {
    fn of(caller: &Caller) -> Key {
        Key {
            authenticator: caller.authenticator.clone(),
            subject: caller.subject.clone(),
            groups: caller.groups.clone(),
            only_in: caller.only_in.clone(),
            token: caller.token.clone(),
        }
    }
}

impl Rights {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Who a caller is here, with what they may do: the one place where somebody whom an authenticator knows becomes a
    /// user. Those of the server itself stay what they are. `source`: the address that they come from.
    pub async fn admit(&self, caller: Caller, source: &str) -> Result<Caller, Refused> {
        let known_here = caller.operator || caller.access.is_some();
        if known_here || (caller.authenticator.is_empty() && caller.token.is_none()) {
            return Ok(caller);
        }
        let known = match self.known(&caller).await {
            Ok(known) => known,
            Err(error) => return Err(Refused { error, caller }),
        };
        let mut caller = Caller {
            operator: known.access.is_operator(),
            user: known.user.clone(),
            access: Some(known.access.clone()),
            only_in: known.only_in.clone(),
            ..caller
        };
        if let Some(token) = &known.token {
            caller.name.clone_from(&token.maker);
            caller.credential = format!("token {}", token.name);
        }
        match self.refuse(&known, source) {
            Some(why) => Err(Refused { error: Error::Unauthenticated(why.to_owned()), caller }),
            None => {
                known.token.iter().for_each(|token| self.token_used(&token.id, source));
                Ok(caller)
            }
        }
    }

    /// Whether a code must come with this caller's password.
    pub(super) async fn has_second_factor(&self, said: &Caller) -> Result<bool, Error> {
        Ok(self.known(said).await?.second_factor)
    }

    fn refuse(&self, known: &Known, source: &str) -> Option<&'static str> {
        if known.disabled {
            return Some("this user is disabled: ask an operator");
        }
        let token = known.token.as_ref()?;
        if token.until.is_some_and(|until| until <= self.env().now()) {
            return Some("this token has expired: make a new one");
        }
        let within =
            |source: IpAddr| token.networks.iter().any(|network| network.contains(&source.to_canonical()));
        if token.networks.is_empty() || source.parse().is_ok_and(within) {
            return None;
        }
        Some("this token is not good for where you are: its `networks` say from where it is")
    }

    async fn known(&self, caller: &Caller) -> Result<Arc<Known>, Error> {
        let key = Key::of(caller);
        let look = |state: &State| state.people.get(&key).cloned();
        if let Some(known) = self.kept(look) {
            return Ok(known);
        }
        let stamp = match self.confirmed(look).await? {
            (_, Some(known)) => return Ok(known),
            (stamp, None) => stamp,
        };
        let known = Arc::new(self.find_out(caller).await?);
        self.keep(&stamp, |state| drop(state.people.insert(key.clone(), known.clone())));
        Ok(known)
    }

    /// What is granted and denied in a tenant, to whom: the first thousand.
    pub async fn granted_in(&self, right: &Right) -> Result<Vec<(String, Grant)>, Error> {
        let mut conn = self.read_for(right).await?;
        let sql = format!(
            "SELECT {COLUMNS}, g.subject FROM grantee g JOIN resource r ON r.id = g.holder \
             WHERE g.tenant IN ($1, '') AND r.deleted_at IS NULL ORDER BY g.holder LIMIT 1000"
        );
        let mut all = Vec::new();
        for row in conn.rows(&sql, values![right.tenant()]).await? {
            let subject: Vec<String> = row.json("subject")?;
            let words: Vec<&str> = subject.iter().map(String::as_str).collect();
            let who = match words[..] {
                ["user", id] => format!("user {id}"),
                ["group", authenticator, group] => format!("group {group} of {authenticator}"),
                _ => format!("all whom {} knows", words.last().unwrap_or(&"nobody")),
            };
            let grants = grants::of(&mut conn, &objects::stored(&row)?).await?;
            all.extend(grants.into_iter().map(|grant| (who.clone(), grant)));
        }
        Ok(all)
    }

    // === what is kept ===

    /// What is kept, as long as it can be believed.
    fn kept<T>(&self, look: impl Fn(&State) -> Option<T>) -> Option<T> {
        let state = self.rights.state();
        let young = |at: Duration| self.env().uptime().saturating_sub(at) < RIGHTS_STALE;
        let true_still = state.now.rung == self.bells.rights_rung() && state.confirmed.is_some_and(young);
        if true_still { look(&state) } else { None }
    }

    /// What is kept, after a look at whether it is still true. Of many who come at once one asks, and a second for those
    /// that came while it did: an answer to a question that was put after one has come is as good as one's own.
    async fn confirmed<T>(&self, look: impl Fn(&State) -> Option<T>) -> Result<(Stamp, Option<T>), Error> {
        let came = self.env().uptime();
        let _one = self.rights.asking.lock().await;
        {
            let state = self.rights.state();
            let since = state.confirmed.is_some_and(|at| at >= came);
            if since && state.now.rung == self.bells.rights_rung() {
                return Ok((state.now.clone(), look(&state)));
            }
        }
        // Both before the database is asked: what happens meanwhile makes it look again.
        let (rung, at) = (self.bells.rights_rung(), self.env().uptime());
        let now = Stamp { rung, epoch: grants::epoch(&mut self.read().await?).await? };
        let mut state = self.rights.state();
        if state.now != now {
            *state = State { now: now.clone(), ..State::default() };
        }
        state.confirmed = Some(at);
        let found = look(&state);
        Ok((now, found))
    }

    fn keep(&self, stamp: &Stamp, put: impl FnOnce(&mut State)) {
        let mut state = self.rights.state();
        if state.now == *stamp {
            if state.people.len() >= MOST {
                state.people.clear();
            }
            put(&mut state);
        }
    }

    // === what is read ===

    async fn find_out(&self, caller: &Caller) -> Result<Known, Error> {
        if let Some(token) = &caller.token {
            return self.find_out_token(token).await;
        }
        // No connection is held while another one is needed.
        let found = identity_of(&mut self.read().await?, caller).await?;
        let who = match found {
            Some(who) => who,
            None => {
                self.first_login(caller).await?;
                let gone = || Error::Unavailable("a user was deleted at this moment; try again".to_owned());
                identity_of(&mut self.read().await?, caller).await?.ok_or_else(gone)?
            }
        };
        let groups = objects::text(&caller.groups);
        if who.groups != groups {
            self.groups_are(&who.user.core.id, groups).await?;
        }
        let mut conn = self.read().await?;
        let second_factor = second_factor::counts(&mut conn, &who.user.core.id).await?;
        let grants = granted(&mut conn, &who.user, &caller.groups, caller.only_in.as_deref()).await?;
        Ok(Known {
            user: who.user.core.id,
            only_in: caller.only_in.clone(),
            disabled: who.user.spec["disabled"] == json!(true),
            access: Arc::new(Access { grants, limit: None }),
            token: None,
            second_factor,
        })
    }

    async fn find_out_token(&self, hash: &str) -> Result<Known, Error> {
        let mut conn = self.read().await?;
        let gone =
            || Error::Unauthenticated("nobody knows this token: it was deleted, or is not whole".to_owned());
        let sql = format!(
            "SELECT {COLUMNS} FROM api_token t JOIN resource r ON r.id = t.holder \
             WHERE t.hash = $1 AND r.deleted_at IS NULL"
        );
        let token = objects::stored(&conn.row(&sql, values![hash]).await?.ok_or_else(gone)?)?;
        let (mut disabled, mut maker, mut only_in) = (false, "operator".to_owned(), None);
        let grants = if token.core.owner.is_empty() {
            let why = "the operator made this token".to_owned();
            vec![Grant { why, scopes: Permission::all(["*:*"]), ..Grant::default() }]
        } else {
            let user = objects::by_id(&mut conn, &token.core.owner, false).await?;
            let user = user.filter(|user| user.core.deleted_at.is_none()).ok_or_else(gone)?;
            let sql = "SELECT groups FROM identity WHERE holder = $1";
            let row = conn.row(sql, values![&user.core.id]).await?.ok_or_else(gone)?;
            let groups: Vec<String> = row.json("groups")?;
            disabled = user.spec["disabled"] == json!(true);
            only_in = user.spec["only_in"].as_str().map(str::to_owned);
            maker = user.spec["username"].as_str().unwrap_or_default().to_owned();
            granted(&mut conn, &user, &groups, None).await?
        };
        let read = |field: &str| token.spec[field].clone();
        let only_in = token.spec["tenant"].as_str().map(str::to_owned).or(only_in);
        let api_token = ApiToken {
            id: token.core.id.clone(),
            name: token.core.name.clone(),
            maker,
            networks: serde_json::from_value(read("networks")).unwrap_or_default(),
            until: serde_json::from_value(read("expires_at")).ok(),
        };
        Ok(Known {
            user: token.core.owner.clone(),
            only_in,
            disabled,
            access: Arc::new(Access { grants, limit: Some(limit(&token)) }),
            token: Some(api_token),
            second_factor: false,
        })
    }
}

/// What a token is limited to. No token says who may do what or makes tokens: it would outlive its own end.
fn limit(token: &Stored) -> Grant {
    let scopes: Vec<&str> =
        token.spec["scopes"].as_array().into_iter().flatten().filter_map(|one| one.as_str()).collect();
    let own = ["token", "user"].into_iter().chain(RIGHTS);
    let kept = own.flat_map(|kind| ["create", "update", "delete"].map(|verb| format!("{kind}:{verb}")));
    let tenant = token.spec["tenant"].as_str().map(str::to_owned);
    Grant {
        why: format!("the token `{}` is limited", token.core.name),
        deny: false,
        scopes: Permission::all(if scopes.is_empty() { vec!["*:*"] } else { scopes }),
        except: kept.filter_map(|text| Permission::parse(&text).ok()).collect(),
        area: Area { tenant, ..grants::area(token) },
        suspended: false,
    }
}

struct Identity {
    user: Stored,
    groups: String,
}

async fn identity_of(conn: &mut Conn, caller: &Caller) -> Result<Option<Identity>, Error> {
    let sql = format!(
        "SELECT {COLUMNS}, i.groups FROM identity i JOIN resource r ON r.id = i.holder \
         WHERE i.authenticator = $1 AND i.subject = $2 AND i.subject <> ''"
    );
    let Some(row) = conn.row(&sql, values![&caller.authenticator, &caller.subject]).await? else {
        return Ok(None);
    };
    Ok(Some(Identity { user: objects::stored(&row)?, groups: row.text("groups")? }))
}

/// All that was granted to a user and to the groups that they are in, and what everybody has.
async fn granted(
    conn: &mut Conn,
    user: &Stored,
    groups: &[String],
    only_in: Option<&str>,
) -> Result<Vec<Grant>, Error> {
    let authenticator = user.spec["authenticator"].as_str().unwrap_or_default();
    let id = &user.core.id;
    let mut subjects = vec![grants::subject(&["user", id]), grants::subject(&["all", authenticator])];
    subjects.extend(groups.iter().map(|group| grants::subject(&["group", authenticator, group])));
    let (list, values) = list(&subjects);
    let sql = format!(
        "SELECT DISTINCT {COLUMNS} FROM grantee g JOIN resource r ON r.id = g.holder \
         WHERE g.subject IN {list} AND r.deleted_at IS NULL"
    );
    let mut all = Vec::new();
    for row in conn.rows(&sql, &values).await? {
        all.extend(grants::of(conn, &objects::stored(&row)?).await?);
    }
    if let Some(tenant) = only_in.or(user.spec["only_in"].as_str()) {
        all.retain(|grant| grant.area.tenant.as_deref() == Some(tenant));
    }
    let own = |tenant: &str, kind: &str| Grant {
        why: "it is your own".to_owned(),
        scopes: Permission::all([format!("{kind}:*").as_str()]),
        area: Area { kinds: vec![kind.to_owned()], owner: Some(id.clone()), ..Area::tenant(tenant) },
        ..Grant::default()
    };
    let access = Access { grants: all, limit: None };
    let keys: Vec<Grant> = access.tenants().into_iter().map(|tenant| own(tenant, "ssh-key")).collect();
    let suspended = if access.is_operator() { Vec::new() } else { suspended(conn, &access).await? };
    let mut access = access;
    access.grants.extend(keys);
    access.grants.push(own("", "token"));
    access.suspend(&suspended);
    Ok(access.grants)
}

/// Which of the tenants that somebody has rights in are suspended.
async fn suspended(conn: &mut Conn, access: &Access) -> Result<Vec<String>, Error> {
    let tenants: Vec<String> = access.tenants().into_iter().map(str::to_owned).collect();
    let (mut all, kind, none) = (Vec::new(), objects::TENANT, "");
    for some in tenants.chunks(256) {
        let (list, mut values) = list(some);
        values.extend([kind.into(), none.into()]);
        let sql = format!(
            "SELECT {COLUMNS} FROM live l JOIN resource r ON r.id = l.id WHERE l.name IN {list} AND l.kind = ${} AND l.tenant = ${}",
            values.len() - 1,
            values.len()
        );
        for row in conn.rows(&sql, &values).await? {
            let tenant = objects::stored(&row)?;
            if suspend::is(&tenant) {
                all.push(tenant.core.name);
            }
        }
    }
    Ok(all)
}
