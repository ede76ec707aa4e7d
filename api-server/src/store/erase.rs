//! Erasure: takes what the log says of one actor out of it. Digests and hashes stay, so the rest is proven as
//! before, and the log tells how many entries were emptied: any more than that are a fault.

use super::db::values;
use super::tx::Tx;
use super::{Context, Store, log, prove};
use crate::kernel::Error;

impl Store {
    /// Empties the entries of this actor. How many there were.
    pub async fn erase_log(&self, actor: &str) -> Result<u64, Error> {
        self.write(actor.to_owned(), |tx, context, actor| {
            Box::pin(async move { erase(tx, &context, &actor).await })
        })
        .await
    }
}

async fn erase(tx: &mut Tx, context: &Context, actor: &str) -> Result<u64, Error> {
    let sql = "UPDATE event_log SET actor = '', credential = '', source = '', request_id = '', name = '', detail = '', \
               erased = 1 WHERE actor = $1 AND erased = 0";
    let erased = tx.run(sql, values![actor]).await?;
    if erased > 0 {
        log::system(tx, context, "erase", &prove::erase_detail(erased)).await?;
    }
    Ok(erased)
}
