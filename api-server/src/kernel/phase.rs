//! The phase of a resource: computed here and nowhere else, from the tombstone, the last job and what the
//! kind says of its status; stored with whichever of them is written.

use super::{JobState, Verb};

/// The last job of a resource, as far as the phase depends on it.
#[derive(Clone, Copy, Debug)]
pub struct LastJob<'a> {
    /// What it wants.
    pub verb: &'a Verb,
    /// Where it is.
    pub state: JobState,
}

/// The phase.
///
/// `settled` is the kind's own word when no job is at work (`ready`, `running`, `stopped`); `doing` the word
/// of the action at work (`stopping`).
pub fn phase(deleted: bool, last: Option<LastJob<'_>>, settled: &str, doing: Option<&str>) -> String {
    let word = match last {
        _ if deleted => "deleting",
        Some(LastJob { verb: Verb::Create, state: JobState::Failed | JobState::Cancelled }) => "failed",
        Some(LastJob { verb: Verb::Create, state }) if !state.is_final() => "creating",
        Some(LastJob { verb: Verb::Update, state }) if !state.is_final() => "updating",
        Some(LastJob { verb: Verb::Act(_), state }) if !state.is_final() => doing.unwrap_or("updating"),
        _ => settled,
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_job_and_the_tombstone_decide() {
        let create = Verb::Create;
        let stop = Verb::Act("stop".into());
        let last = |verb, state| Some(LastJob { verb, state });
        assert_eq!(phase(false, last(&create, JobState::Running), "running", None), "creating");
        assert_eq!(phase(false, last(&create, JobState::Failed), "stopped", None), "failed");
        assert_eq!(phase(false, last(&create, JobState::Done), "running", None), "running");
        assert_eq!(phase(false, last(&stop, JobState::Running), "running", Some("stopping")), "stopping");
        assert_eq!(phase(true, last(&create, JobState::Failed), "running", None), "deleting");
        assert_eq!(phase(false, None, "ready", None), "ready");
    }
}
