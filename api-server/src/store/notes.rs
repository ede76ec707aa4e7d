//! What operators do that is no write of an object: an entry all the same.

use super::create::Maker;
use super::history::{self, Entry};
use super::{Asked, Store};
use crate::kernel::{Caller, Error};

impl Store {
    /// Keeps that somebody did this with that.
    pub async fn note(
        &self,
        caller: &Caller,
        with: &'static str,
        verb: &'static str,
        asked: &Asked,
    ) -> Result<(), Error> {
        let right = caller.may(verb, with, "")?;
        self.write((right, asked.clone()), move |tx, context, (right, asked)| {
            Box::pin(async move {
                let maker = Maker::of(&right, &asked);
                let entry = Entry {
                    class: "write",
                    kind: with,
                    verb,
                    outcome: "done",
                    actor: &maker.caller.name,
                    credential: &maker.caller.credential,
                    source: &maker.asked.source,
                    request_id: &maker.asked.request_id,
                    ..Entry::default()
                };
                history::add(tx, &context, entry);
                Ok(())
            })
        })
        .await
    }
}
