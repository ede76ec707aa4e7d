//! A job that could not be taken further comes again, each time later. Nothing was written by the try that failed.

use super::Store;
use super::db::values;
use crate::kernel::Error;

/// The first pause; each is twice as long as the one before.
const FIRST_MILLIS: i64 = 1_000;
/// The longest.
const MOST_MILLIS: i64 = 5 * 60 * 1_000;

impl Store {
    /// Counts a try that failed for this reason, and says so where the job stands; it is due again after a pause. What is
    /// our own fault is for the log only: tenants read the job.
    pub(crate) async fn put_off_job(&self, id: &str, error: &Error) -> Result<(), Error> {
        let why = match error {
            Error::Internal(_) => "the server's log says why".to_owned(),
            error => error.to_string(),
        };
        self.write((id.to_owned(), why), |tx, context, (id, why)| {
            Box::pin(async move {
                let sql = format!(
                    "SELECT attempts, step FROM job WHERE id = $1 AND finished_at IS NULL{}",
                    tx.for_update()
                );
                let Some(row) = tx.row(&sql, values![&id]).await? else { return Ok(()) };
                let (attempts, step) = (row.int("attempts")? + 1, row.int("step")?);
                let again = context.env.now().plus_millis(pause_millis(attempts));
                let sql = "UPDATE job SET attempts = $2, wake_at = $3 WHERE id = $1";
                tx.run(sql, values![&id, attempts, again]).await?;
                let sql = "UPDATE job_step SET message = $3 WHERE job = $1 AND idx = $2";
                tx.run(sql, values![&id, step, format!("could not be taken further, tried again: {why}")])
                    .await?;
                Ok(())
            })
        })
        .await
    }
}

fn pause_millis(attempts: i64) -> i64 {
    (FIRST_MILLIS << (attempts.clamp(1, 32) - 1)).min(MOST_MILLIS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes() {
        let pauses: Vec<i64> = [1, 2, 3, 9, 10, 64, i64::MAX].into_iter().map(pause_millis).collect();
        assert_eq!(pauses, [1_000, 2_000, 4_000, 256_000, 300_000, 300_000, 300_000]);
    }
}
