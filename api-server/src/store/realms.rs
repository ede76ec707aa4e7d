//! Realms at the identity provider: that one is to be made for a tenant, or to go with it, is a row which stays until
//! somebody who may call the provider has done it and said so. So it is done, and told, however often a server dies
//! in between. What is kept of a realm says that it is ours.

use serde_json::{Value, json};

use super::awaits::{LOOK_AGAIN_SECONDS, Outcome};
use super::db::values;
use super::report::set_status;
use super::run::JobRow;
use super::tx::Tx;
use super::{Bell, Context, Store, domains, jobs, objects};
use crate::kernel::realm::{GOES, MADE, MAKING};
use crate::kernel::{Clash, Error, FieldError, Stored, Timestamp};

/// The scope of what is to be done. The value is the job that waits for it, the key is what.
pub(super) const WANTED: &str = "realm-wanted";
/// The scope of the leases on realms.
const REALMS: &str = "tenant-realm";
/// As many are done at once.
const AT_ONCE: i64 = 100;

/// What a job wants done with the realm of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmWork {
    /// The job.
    pub job: String,
    /// Id of the tenant: the realm bears it, so that it is known to be ours.
    pub tenant: String,
    /// What the tenant is called.
    pub tenant_name: String,
    /// The realm.
    pub realm: String,
    /// It is to be deleted, not made.
    pub gone: bool,
}

/// How that came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RealmTold {
    /// It is so.
    Done,
    /// It cannot be, and why.
    Refused(String),
    /// It is tried again, and why that is.
    Waits(String),
}

impl Store {
    /// Realms can be made from here on.
    pub fn makes_realms(&self) {
        let _ = self.context.makes_realms.set(());
    }

    /// What is to be done now, the first hundred.
    pub async fn realms_wanted(&self) -> Result<Vec<RealmWork>, Error> {
        let sql = "SELECT l.value, l.key, r.id, r.name FROM lease l JOIN resource r ON r.id = l.holder \
                   JOIN job j ON j.id = l.value WHERE l.scope = $1 AND j.finished_at IS NULL ORDER BY l.value LIMIT $2";
        let rows = self.read().await?.rows(sql, values![WANTED, AT_ONCE]).await?;
        let mut all = Vec::new();
        for row in &rows {
            let (job, key, tenant_name) = (row.text("value")?, row.text("key")?, row.text("name")?);
            let Some((what, realm)) = key.split_once(' ') else { continue };
            let (realm, gone) = (realm.to_owned(), what == "gone");
            all.push(RealmWork { job, tenant: row.text("id")?, tenant_name, realm, gone });
        }
        Ok(all)
    }

    /// Tells how it came out; whoever waits for it goes on.
    pub async fn realm_told(&self, work: RealmWork, told: RealmTold) -> Result<(), Error> {
        self.write((work, told), |tx, context, (work, told)| {
            Box::pin(async move { tell(tx, &context, &work, &told).await })
        })
        .await
    }

    /// The tenants by their realms: whose tokens count for which tenant. One that is to be made does not count before it
    /// was: there may be one of this name that is somebody else's.
    pub async fn tenant_realms(&self) -> Result<Vec<(String, String)>, Error> {
        let sql = "SELECT l.value, r.name, r.claims FROM lease l JOIN resource r ON r.id = l.holder \
                   WHERE l.scope = $1 ORDER BY l.value";
        let mut all = Vec::new();
        for row in self.read().await?.rows(sql, values![REALMS]).await? {
            let (realm, claims): (String, Value) = (row.text("value")?, row.json("claims")?);
            // What a tenant gives up is its own until that is written.
            let claimed = claims[format!("realm.{realm}")].is_string();
            if claimed && (claims[MAKING] != true || claims[MADE] == realm.as_str()) {
                all.push((realm, row.text("name")?));
            }
        }
        Ok(all)
    }
}

async fn tell(tx: &mut Tx, context: &Context, work: &RealmWork, told: &RealmTold) -> Result<(), Error> {
    jobs::wake(tx, context, std::slice::from_ref(&work.tenant)).await?;
    let Some(mut tenant) = objects::by_id(tx, &work.tenant, true).await? else { return Ok(()) };
    let mut status = if tenant.status.is_object() { tenant.status.clone() } else { json!({}) };
    let made = tenant.claims.get(MADE).is_some_and(|made| *made == work.realm);
    let (name, job) = (&work.realm, &work.job);
    status["realm"] = match told {
        RealmTold::Done => json!({ "name": name, "made": !work.gone, "done": job }),
        RealmTold::Refused(why) => json!({ "name": name, "made": made, "done": job, "problem": why }),
        RealmTold::Waits(why) => json!({ "name": name, "made": made, "waits_for": why }),
    };
    if !matches!(told, RealmTold::Waits(_)) {
        forget(tx, job).await?;
    }
    if *told == RealmTold::Done {
        match work.gone {
            true => drop(tenant.claims.remove(MADE)),
            false => drop(tenant.claims.insert(MADE.to_owned(), json!(name))),
        }
        objects::update(tx, &tenant).await?;
        domains::changed(tx, context).await?;
    }
    if status == tenant.status {
        return Ok(());
    }
    set_status(tx, context, &mut tenant, status).await
}

/// The step of a job that wants a realm made or gone.
pub(super) async fn step(
    tx: &mut Tx,
    context: &Context,
    job: &JobRow,
    (name, gone): (&str, bool),
    deadline: Timestamp,
) -> Result<Outcome, Error> {
    let tenant = objects::by_id(tx, &job.resource, false).await?.ok_or(Error::NotFound)?;
    let told = &tenant.status["realm"];
    let told_us = told["done"] == job.id.as_str();
    let made = tenant.claims.get(MADE).is_some_and(|made| made == name);
    if made != gone && (told_us || !gone) {
        return Ok(Outcome::Done { made: false });
    }
    if let Some(problem) = told["problem"].as_str().filter(|_| told_us) {
        return Ok(Outcome::Failed(problem.to_owned()));
    }
    let waits_for = told["waits_for"].as_str().unwrap_or("waits for the identity provider");
    let now = context.env.now();
    if now >= deadline {
        forget(tx, &job.id).await?;
        return Ok(Outcome::Failed(format!("the identity provider has not done it in time: {waits_for}")));
    }
    let sql = "INSERT INTO lease (scope, value, holder, key) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    let key = format!("{} {name}", if gone { "gone" } else { "made" });
    if tx.run(sql, values![WANTED, &job.id, &job.resource, key]).await? > 0 {
        tx.ring(Bell::Realms);
    }
    let until = deadline.min(now.plus_seconds(LOOK_AGAIN_SECONDS));
    let (awaits, message) = (Some(job.resource.clone()), waits_for.to_owned());
    Ok(Outcome::Wait { awaits, until, message, progress: 0 })
}

/// What a job wanted it does not want any more.
pub(super) async fn forget(tx: &mut Tx, job: &str) -> Result<(), Error> {
    tx.run("DELETE FROM lease WHERE scope = $1 AND value = $2", values![WANTED, job]).await?;
    Ok(())
}

/// What is wrong with a tenant whose realm is to be made.
pub(super) fn judged(context: &Context, tenant: &Stored) -> Option<FieldError> {
    let wanted = tenant.core.kind == objects::TENANT && tenant.spec["make_realm"] == true;
    if !wanted || tenant.claims.contains_key(MADE) || context.makes_realms.get().is_some() {
        return None;
    }
    let reason =
        "this server knows no identity provider at which it could make one (`keycloak` in its configuration)";
    Some(FieldError::new("spec.make_realm", reason))
}

/// The realm of a tenant that is deleted goes too.
pub(super) fn goes_with(context: &Context, tenant: &mut Stored) -> Result<(), Error> {
    let why = match (tenant.claims.get(MADE).and_then(Value::as_str), context.makes_realms.get()) {
        (None, _) => {
            "its realm was not made here, and is not deleted: delete the tenant without `realm=delete`"
        }
        (Some(_), None) => "this server knows no identity provider at which it could delete the realm",
        (Some(_), Some(())) => {
            tenant.claims.insert(GOES.to_owned(), json!(true));
            return Ok(());
        }
    };
    Err(Clash::WrongState(why.to_owned()).into())
}
