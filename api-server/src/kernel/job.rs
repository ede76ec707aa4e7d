//! Jobs: an intent on one resource.
//!
//! ```text
//!             begin                    last step done
//!   waiting ---------> running ----------------------------> done
//!      |                 |  step failed, deadline, cancel
//!      | cancel,         v
//!      | preempted    undoing ---- undone, last first ----> failed | cancelled
//!      v
//!   cancelled
//! ```
//! `done`, `failed` and `cancelled` are final; a retry is a new job.

use serde::{Deserialize, Serialize};

/// What a job wants of its resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Make it.
    Create,
    /// Change it.
    Update,
    /// Take it away.
    Remove,
    /// An action of its kind: `stop`.
    Act(String),
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Behind another one.
    Waiting,
    /// At one of its steps.
    Running,
    /// Taking back what it did.
    Undoing,
    /// Done.
    Done,
    /// Failed; what it did is taken back.
    Failed,
    /// Cancelled or preempted.
    Cancelled,
}

/// What a new job does to an older, unfinished one of the same resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempts {
    /// Waits behind it.
    No,
    /// The older one ends as cancelled, where it stands; the new one converges from there.
    Yes,
}

// === impl Verb ===

impl Verb {
    /// As stored: `create`, `update`, `remove`, or the action's verb.
    pub fn as_str(&self) -> &str {
        match self {
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Remove => "remove",
            Verb::Act(verb) => verb,
        }
    }

    /// From its stored form.
    pub fn parse(text: &str) -> Verb {
        match text {
            "create" => Verb::Create,
            "update" => Verb::Update,
            "remove" => Verb::Remove,
            verb => Verb::Act(verb.to_owned()),
        }
    }
}

// === impl JobState ===

impl JobState {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Waiting => "waiting",
            JobState::Running => "running",
            JobState::Undoing => "undoing",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// From its stored form; unknown words are read as failed, which is final and harmless.
    pub fn parse(text: &str) -> JobState {
        match text {
            "waiting" => JobState::Waiting,
            "running" => JobState::Running,
            "undoing" => JobState::Undoing,
            "done" => JobState::Done,
            "cancelled" => JobState::Cancelled,
            _ => JobState::Failed,
        }
    }

    /// True when nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, JobState::Done | JobState::Failed | JobState::Cancelled)
    }
}

/// The preemption table. What is not in it waits its turn.
///
/// | new | older | |
/// |---|---|---|
/// | remove | any | preempts: nothing else matters any more |
/// | stop, hard | start, restart, stop | preempts: what hangs is cut short |
/// | any | anything else | waits |
///
/// A start never preempts a stop. `supersede` cancels the *waiting* ones before this is asked.
pub fn preempts(new: &Verb, hard: bool, older: &Verb) -> Preempts {
    let yes = match (new, older) {
        (Verb::Remove, _) => true,
        (Verb::Act(new), Verb::Act(older)) if hard && new == "stop" => {
            matches!(older.as_str(), "start" | "restart" | "stop")
        }
        _ => false,
    };
    if yes { Preempts::Yes } else { Preempts::No }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preemption_table() {
        let act = |verb: &str| Verb::Act(verb.to_owned());
        assert_eq!(preempts(&Verb::Remove, false, &Verb::Create), Preempts::Yes);
        assert_eq!(preempts(&act("stop"), true, &act("start")), Preempts::Yes);
        assert_eq!(preempts(&act("stop"), false, &act("start")), Preempts::No);
        assert_eq!(preempts(&act("start"), true, &act("stop")), Preempts::No);
        assert_eq!(preempts(&act("stop"), true, &Verb::Create), Preempts::No);
        assert_eq!(preempts(&Verb::Update, false, &Verb::Update), Preempts::No);
    }
}
