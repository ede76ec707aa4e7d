//! The App: makes clock, random numbers, store and everything around it, and hands each what it needs.

use std::sync::Arc;

use ring::rand::SecureRandom as _;

use crate::kernel::env::{Clock, Random};
use crate::kernel::{Caller, Clash, Env, Error, Scope, Timestamp};
use crate::resources;
use crate::store::{Asked, NewObject, Store};

struct SystemClock;

struct SystemRandom(ring::rand::SystemRandom);

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(jiff::Timestamp::now().as_microsecond())
    }
}

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        // The kernel's random numbers fail only where nothing else works either.
        self.0.fill(bytes).expect("the system has random numbers");
    }
}

/// The environment of a real server.
pub fn system_env() -> Env {
    Env::new(Arc::new(SystemClock), Arc::new(SystemRandom(ring::rand::SystemRandom::new())))
}

/// What a first start makes: machine types, a pool, a tenant. Once per database: what an operator deletes
/// stays deleted.
pub async fn seed(store: &Store) -> Result<(), Error> {
    let mine = store.env().id("seed");
    if store.meta("seeded", mine.clone()).await? != mine {
        return Ok(());
    }
    let asked = Asked { request_id: "first-start".into(), ..Asked::default() };
    for (kind, name, spec) in resources::seeds() {
        let kind = store.registry().get(kind)?;
        debug_assert_ne!(kind.meta().scope, Scope::Tenant);
        let right = Caller::system().may("create", kind.meta().kind, "")?;
        let body = NewObject { name: Some(name.to_owned()), spec, ..NewObject::default() };
        match store.create(&right, kind, body, &asked).await {
            Ok(_) | Err(Error::Clash(Clash::NameTaken(_))) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
