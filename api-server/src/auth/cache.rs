//! What was found out about credentials, for a while. A credential is kept as a keyed hash only: no dump of memory
//! shows it, and the key is another one in each process.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ring::hmac;

use crate::kernel::Env;

/// Entries that are held at most.
const MOST: usize = 20_000;

/// A keyed hash of a credential.
pub type Fingerprint = [u8; 32];

/// Answers by the fingerprint of what was asked.
pub struct Cache<T> {
    env: Env,
    key: hmac::Key,
    held: Mutex<BTreeMap<Fingerprint, (Duration, T)>>,
}

impl<T: Clone> Cache<T> {
    /// An empty one.
    pub fn new(env: &Env) -> Cache<T> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &env.bytes::<32>());
        Cache { env: env.clone(), key, held: Mutex::default() }
    }

    /// Of these parts, in this order; what stands in one never counts for its neighbour.
    pub fn fingerprint(&self, parts: &[&[u8]]) -> Fingerprint {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(context.sign().as_ref());
        fingerprint
    }

    /// What is known of it, if that is not too old.
    pub fn get(&self, fingerprint: &Fingerprint) -> Option<T> {
        let now = self.env.uptime();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get(fingerprint) {
            Some((until, known)) if *until > now => Some(known.clone()),
            Some(_) => {
                held.remove(fingerprint);
                None
            }
            None => None,
        }
    }

    /// Keeps it for so long.
    pub fn put(&self, fingerprint: Fingerprint, known: T, life: Duration) {
        let now = self.env.uptime();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= MOST {
            held.retain(|_, (until, _)| *until > now);
        }
        if held.len() >= MOST {
            // Fingerprints are as good as drawn by lot, so this one is.
            held.pop_first();
        }
        held.insert(fingerprint, (now + life, known));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Watch, env};
    use super::*;

    #[test]
    fn what_is_old_is_not_known_any_more() {
        let watch = Watch::default();
        let cache = Cache::new(&env(&watch));
        let print = cache.fingerprint(&[b"anna", b"secret"]);
        assert_ne!(print, cache.fingerprint(&[b"annas", b"ecret"]));
        assert_eq!(cache.get(&print), None);
        cache.put(print, 7, Duration::from_secs(10));
        watch.pass(9);
        assert_eq!(cache.get(&print), Some(7));
        watch.pass(1);
        assert_eq!(cache.get(&print), None);
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let cache = Cache::new(&env(&Watch::default()));
        for number in 0..(MOST as u64 + 50) {
            cache.put(cache.fingerprint(&[&number.to_be_bytes()]), (), Duration::from_secs(1));
        }
        assert_eq!(cache.held.lock().unwrap().len(), MOST);
    }
}
