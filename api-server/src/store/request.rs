//! The door of requests: whatever a caller asks to be written comes through `perform`, which adds to each
//! what all have: a key under which it is done once, a plan that is rolled back.

use std::fmt;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value};

use super::change::{self, Asked, NewObject, Written};
use super::create::{self, Maker};
use super::keys::{self, Kept, KeptAnswer, Key};
use super::plan::{self, Planned};
use super::tx::{Tx, apart};
use super::{Context, Job, Store, empty, grants, letters, realms, remove};
use crate::kernel::resource::Call;
use crate::kernel::{Error, Kind, Right};

/// What can be asked.
#[derive(Clone)]
pub enum Write {
    /// Make an object.
    Create {
        /// Of this kind.
        kind: &'static dyn Kind,
        /// This one.
        body: NewObject,
    },
    /// Apply a merge patch (RFC 7396) of `name`, `tags`, `metadata`, `protected`, `spec`.
    Update {
        /// Of this kind.
        kind: &'static dyn Kind,
        /// Id or name.
        id: String,
        /// What changes.
        patch: Value,
        /// Only at this version.
        if_match: Option<i64>,
    },
    /// Make name, tags, metadata and spec what they were.
    Restore {
        /// Of this kind.
        kind: &'static dyn Kind,
        /// Id or name.
        id: String,
        /// At this version.
        version: i64,
        /// Only at this version.
        if_match: Option<i64>,
    },
    /// Carry out an action.
    Act {
        /// Of this kind.
        kind: &'static dyn Kind,
        /// Id or name.
        id: String,
        /// Which one, and how.
        call: Call,
        /// Cancel the jobs that wait.
        supersede: bool,
        /// Only at this version.
        if_match: Option<i64>,
    },
    /// Take an object away, and what it owns.
    Remove {
        /// Of this kind.
        kind: &'static dyn Kind,
        /// Id or name.
        id: String,
        /// Only at this version.
        if_match: Option<i64>,
        /// The realm of the tenant goes too.
        realm: bool,
    },
    /// Take a tenant away, and all that it has.
    Empty {
        /// The kind of tenants.
        kind: &'static dyn Kind,
        /// Id or name.
        id: String,
        /// Only at this version.
        if_match: Option<i64>,
        /// Its realm goes too.
        realm: bool,
    },
    /// End a job that has not ended.
    CancelJob {
        /// Which one.
        id: String,
    },
    /// Ask again for what a failed or cancelled job was to do.
    RetryJob {
        /// Which one.
        id: String,
    },
    /// Leave what a failed job left as it is, or no longer wait for a node that does not come back.
    SkipJob {
        /// Which one.
        id: String,
    },
    /// Take back what a failed job wanted.
    UndoJob {
        /// Which one.
        id: String,
    },
}

/// What was done.
#[derive(Clone, Debug)]
pub enum Did {
    /// An object was written.
    Object(Box<Written>),
    /// A job was ended or begun.
    Job(Box<Job>),
}

/// On which terms.
#[derive(Clone, Default)]
pub struct Terms {
    /// Change nothing, and tell what would happen.
    pub plan: bool,
    /// Do it once, however often it is asked.
    pub once: Option<Once>,
}

/// How to do something once.
#[derive(Clone)]
pub struct Once {
    /// Under which key.
    pub key: Key,
    /// True: the answer of the moment is not the last word, because the caller waits for the job.
    pub waits: bool,
    /// Renders what is answered. Called within the transaction: quick, and nothing but rendering.
    pub answer: Arc<dyn Fn(&Did) -> KeptAnswer + Send + Sync>,
}

/// How a request came out.
#[derive(Debug)]
pub enum Outcome {
    /// It was done.
    Done(Did),
    /// It was not done; this would have happened.
    Planned(Box<Planned>),
    /// It had been done before; this was answered.
    Before(Kept),
}

impl Store {
    /// Does what is asked, in one transaction.
    pub async fn perform(
        &self,
        right: &Right,
        write: Write,
        asked: &Asked,
        terms: &Terms,
    ) -> Result<Outcome, Error> {
        // A plan changes nothing, so there is nothing to do once.
        let once = terms.once.clone().filter(|_| !terms.plan);
        let print = match &once {
            Some(once) => self.fingerprint(&once.key).await?,
            None => Vec::new(),
        };
        let request = Arc::new(Request { right: right.clone(), write, asked: asked.clone(), once, print });
        if terms.plan {
            return self.plan(request).await.map(|planned| Outcome::Planned(Box::new(planned)));
        }
        self.write_behind(right.wall(), request, move |tx, context, request| {
            Box::pin(async move { do_once(tx, &context, &request).await })
        })
        .await
    }

    /// The very same transaction, rolled back.
    async fn plan(&self, request: Arc<Request>) -> Result<Planned, Error> {
        let slot = Arc::new(Mutex::new(None));
        let outcome: Result<(), Error> = self
            .write_behind(
                request.right.wall(),
                (request, slot.clone()),
                move |tx, context, (request, slot)| {
                    Box::pin(async move {
                        let planned = plan::plan(tx, &context, &request).await?;
                        if let Ok(mut slot) = slot.lock() {
                            *slot = Some(planned);
                        }
                        // Whatever fails is rolled back.
                        Err(Error::Internal("planned, and rolled back".to_owned()))
                    })
                },
            )
            .await;
        let planned = slot.lock().ok().and_then(|mut slot| slot.take());
        match (planned, outcome) {
            (Some(planned), _) => Ok(planned),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => Err(Error::Internal("a plan came to no end".to_owned())),
        }
    }

    /// Does what is asked, once and without more ado.
    pub(super) async fn simply(&self, right: &Right, write: Write, asked: &Asked) -> Result<Did, Error> {
        match self.perform(right, write, asked, &Terms::default()).await? {
            Outcome::Done(did) => Ok(did),
            Outcome::Planned(_) | Outcome::Before(_) => {
                Err(Error::Internal("neither a plan nor a key was asked for".to_owned()))
            }
        }
    }

    pub(super) async fn written(&self, right: &Right, write: Write, asked: &Asked) -> Result<Written, Error> {
        match self.simply(right, write, asked).await? {
            Did::Object(written) => Ok(*written),
            Did::Job(_) => Err(Error::Internal("a job where an object was written".to_owned())),
        }
    }

    pub(super) async fn done(&self, right: &Right, write: Write, asked: &Asked) -> Result<Job, Error> {
        match self.simply(right, write, asked).await? {
            Did::Job(job) => Ok(*job),
            Did::Object(_) => Err(Error::Internal("an object where a job was asked for".to_owned())),
        }
    }
}

/// All of one request.
pub(super) struct Request {
    pub(super) right: Right,
    pub(super) write: Write,
    pub(super) asked: Asked,
    once: Option<Once>,
    print: Vec<u8>,
}

async fn do_once(tx: &mut Tx, context: &Context, request: &Request) -> Result<Outcome, Error> {
    let Some(once) = &request.once else {
        return apart(tx, |tx| carry_out(tx, context, request)).await.map(Outcome::Done);
    };
    let caller = request.right.caller().identity();
    if let Some(kept) = keys::reserve(tx, context, caller, &once.key, &request.print).await? {
        return Ok(Outcome::Before(kept));
    }
    let did = apart(tx, |tx| carry_out(tx, context, request)).await?;
    let (job, resource) = did.names();
    let settled = !once.waits || job.is_none();
    let kept = Kept { answer: (once.answer)(&did), settled, job, resource };
    keys::keep(tx, caller, &once.key, &kept).await?;
    Ok(Outcome::Done(did))
}

pub(super) async fn carry_out(tx: &mut Tx, context: &Context, request: &Request) -> Result<Did, Error> {
    let (right, asked) = (&request.right, &request.asked);
    let maker = Maker::of(right, asked);
    let written = match &request.write {
        Write::Create { kind, body } => {
            apart(tx, |tx| create::create(tx, context, &maker, *kind, body.clone())).await?
        }
        Write::Update { kind, id, patch, if_match } => {
            let old = change::changeable(tx, right, *kind, id, *if_match).await?;
            grants::refuse(tx, context, &maker, &old, true).await?;
            apart(tx, |tx| change::update(tx, context, &maker, *kind, old, patch)).await?
        }
        Write::Restore { kind, id, version, if_match } => {
            let old = change::changeable(tx, right, *kind, id, *if_match).await?;
            grants::refuse(tx, context, &maker, &old, true).await?;
            apart(tx, |tx| change::restore(tx, context, &maker, *kind, old, *version)).await?
        }
        Write::Act { kind, id, call, supersede, if_match } => {
            let object = change::changeable(tx, right, *kind, id, *if_match).await?;
            apart(tx, |tx| change::act(tx, context, &maker, *kind, object, call, *supersede)).await?
        }
        Write::Remove { kind, id, if_match, realm } => {
            let mut object = change::changeable(tx, right, *kind, id, *if_match).await?;
            remove::refuse_protected(&object)?;
            if *realm {
                realms::goes_with(context, &mut object)?;
            }
            grants::refuse(tx, context, &maker, &object, true).await?;
            apart(tx, |tx| remove::remove(tx, context, &maker, *kind, object)).await?
        }
        Write::Empty { kind, id, if_match, realm } => {
            let mut object = change::changeable(tx, right, *kind, id, *if_match).await?;
            remove::refuse_protected(&object)?;
            if *realm {
                realms::goes_with(context, &mut object)?;
            }
            apart(tx, |tx| empty::begin(tx, context, &maker, object)).await?
        }
        Write::CancelJob { id } => {
            return apart(tx, |tx| letters::cancel_job(tx, context, &maker, right, id)).await.map(Did::job);
        }
        Write::RetryJob { id } => {
            return apart(tx, |tx| letters::retry_job(tx, context, &maker, right, id)).await.map(Did::job);
        }
        Write::SkipJob { id } => {
            return apart(tx, |tx| letters::skip_job(tx, context, &maker, right, id)).await.map(Did::job);
        }
        Write::UndoJob { id } => {
            return apart(tx, |tx| letters::undo_job(tx, context, &maker, right, id)).await.map(Did::job);
        }
    };
    // On what is there in the end: what was merged, not what was sent.
    if !matches!(request.write, Write::Remove { .. } | Write::Empty { .. }) {
        right.judge_written(&written.object.core)?;
        grants::refuse(tx, context, &maker, &written.object, false).await?;
    }
    Ok(Did::Object(Box::new(written)))
}

// === impl Did ===

impl Did {
    fn job(job: Job) -> Did {
        Did::Job(Box::new(job))
    }

    /// Secrets that were made because none was given, by field: for the one answer that shows them.
    pub fn made(&self) -> Map<String, Value> {
        let Did::Object(written) = self else { return Map::new() };
        written.made.iter().map(|(field, plain)| (field.clone(), plain.reveal().into())).collect()
    }

    /// The job that it began or ended, and the object that it was about.
    pub fn names(&self) -> (Option<String>, Option<String>) {
        match self {
            Did::Object(written) => (written.job.clone(), Some(written.object.core.id.clone())),
            Did::Job(job) => (Some(job.id.clone()), Some(job.resource.clone())),
        }
    }
}

// === impl Once ===

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("key", &self.key).field("waits", &self.waits).finish_non_exhaustive()
    }
}
