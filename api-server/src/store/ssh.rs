//! SSH certificates: of instances, made with them, and of whoever logs in to one.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use ssh_key::PublicKey;

use super::change::Asked;
use super::create::Maker;
use super::tx::Tx;
use super::{Context, Store, authority, history, objects};
use crate::kernel::ssh::{self, Authority, UserCertificate, Wanted};
use crate::kernel::{Clash, Error, Kind, Right, Stored};

/// The longest id of a key that is written down.
const LONGEST_KEY_ID: usize = 200;

/// What is known of an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshAuthority {
    /// Its public key, one line.
    pub public_key: String,
    /// `SHA256:...`
    pub fingerprint: String,
}

/// A certificate, and what goes with it.
#[derive(Clone, Debug)]
pub struct SshCertificate {
    /// The instance that it is for.
    pub object: Stored,
    /// The certificate.
    pub certificate: UserCertificate,
    /// What sshd logs.
    pub key_id: String,
    /// Tells certificates apart.
    pub serial: u64,
    /// Who signs for the instance itself.
    pub hosts: SshAuthority,
}

impl Store {
    /// The authorities of a tenant: for hosts, for users.
    pub async fn ssh_authorities(&self, right: &Right) -> Result<(SshAuthority, SshAuthority), Error> {
        let tenant = right.tenant().to_owned();
        let names = BTreeSet::from([tenant.clone()]);
        let mut there = authority::of_all(&mut self.read().await?, &self.context, names).await?;
        let both = match there.remove(&tenant) {
            Some(both) => both,
            None => {
                let made = self.write(tenant.clone(), |tx, context, tenant| {
                    Box::pin(async move { authority::of(tx, &context, &tenant).await })
                });
                made.await?
            }
        };
        Ok((known(&both.hosts, &tenant)?, known(&both.users, &tenant)?))
    }

    /// A certificate for whoever has this key: it opens this one instance, and not for long.
    pub async fn ssh_certificate(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        id: &str,
        (key, seconds): (PublicKey, u32),
        asked: &Asked,
    ) -> Result<SshCertificate, Error> {
        let taken = (right.clone(), id.to_owned(), key, asked.clone());
        self.write(taken, move |tx, context, (right, id, key, asked)| {
            Box::pin(async move {
                let object = objects::find(tx, &right, kind, &id).await?;
                ready(&object)?;
                let tenant = &object.core.tenant;
                let signs = authority::of(tx, &context, tenant).await?;
                let maker = Maker { caller: right.caller(), tenant, asked: &asked };
                let wanted = wanted(&context, key_id(&maker, &object), vec![object.core.id.clone()]);
                let certificate = signs.users.sign_user(&key, &wanted, seconds)?;
                history::noted(tx, &context, &maker, &object, "ssh");
                let hosts = known(&signs.hosts, tenant)?;
                let Wanted { key_id, serial, .. } = wanted;
                Ok(SshCertificate { certificate, key_id, serial, hosts, object })
            })
        })
        .await
    }
}

/// Refuses what cannot be logged in to by a certificate.
fn ready(object: &Stored) -> Result<(), Error> {
    if object.core.deleted_at.is_some() {
        return Err(Clash::WrongState("it is being deleted".to_owned()).into());
    }
    if object.claims.contains_key(ssh::HOST_CERTIFICATE) {
        return Ok(());
    }
    let text = "it knows of no SSH authority: it was first booted before there were any; make it anew, or log in by \
                one of its `ssh_keys`";
    Err(Clash::WrongState(text.to_owned()).into())
}

/// Who asked for what: printable, and not too long.
fn key_id(maker: &Maker<'_>, object: &Stored) -> String {
    let (caller, asked) = (maker.caller, maker.asked);
    let parts = [&caller.name, &caller.user, &object.core.name, &asked.request_id];
    let parts: Vec<&str> = parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    let plain = |letter: char| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '?' };
    parts.join(" ").chars().map(plain).take(LONGEST_KEY_ID).collect()
}

fn wanted(context: &Context, key_id: String, principals: Vec<String>) -> Wanted {
    let env = &context.env;
    Wanted {
        nonce: env.bytes(),
        serial: u64::from_le_bytes(env.bytes()) >> 1,
        key_id,
        principals,
        now: env.now(),
    }
}

fn known(authority: &Authority, tenant: &str) -> Result<SshAuthority, Error> {
    let public_key = authority.line(&format!("rhyzome {tenant}"))?;
    Ok(SshAuthority { public_key, fingerprint: authority.fingerprint() })
}

/// The certificate of a host with this public key.
pub(super) async fn certify_host(
    tx: &mut Tx,
    context: &Context,
    object: &Stored,
    public_key: &str,
    names: &[String],
) -> Result<String, Error> {
    let core = &object.core;
    let hosts = authority::of(tx, context, &core.tenant).await?.hosts;
    let mut principals = vec![core.id.clone()];
    principals.extend(names.iter().cloned().chain(addresses(&object.claims)));
    principals.dedup();
    hosts.sign_host(public_key, &wanted(context, format!("{} {}", core.id, core.name), principals))
}

/// What it is reached by.
fn addresses(claims: &Map<String, Value>) -> impl Iterator<Item = String> + '_ {
    let all = claims.iter().filter(|(key, _)| key.starts_with("nics.") && key.ends_with(".address"));
    all.filter_map(|(_, address)| address.as_str().map(str::to_owned))
}

/// The public half of who signs for the users of a tenant, one line.
pub(super) async fn users_of(tx: &mut Tx, context: &Context, tenant: &str) -> Result<String, Error> {
    Ok(known(&authority::of(tx, context, tenant).await?.users, tenant)?.public_key)
}
