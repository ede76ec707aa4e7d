//! What many sessions ask of the store at the same time is asked together: ten thousand that look for what is new, or
//! tell the same, cost some hundred statements. Nobody waits for more to come.
use super::ChannelContext;
use super::report::insist;
use crate::store::{Introduction, Look, News, NodeReport, Shown};
use serde_json::Value;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// So many are asked together at most.
const MANY: usize = 64;
/// So many may wait; more wait before that, which their agents feel.
const QUEUE: usize = 1024;
/// So many of one kind are under way at the same time: a database that is not on this machine takes its time.
const AT_ONCE: usize = 2;

/// Where sessions ask.
pub(super) struct Desk {
    openings: Together<Opening, Opened>,
    pub(super) news: Together<Look, News>,
    reports: Together<(String, NodeReport), ()>,
    statuses: Together<(String, Value), ()>,
    shown: Together<(String, Shown), ()>,
}

/// A session that is to begin.
#[derive(Clone)]
pub(super) struct Opening {
    pub(super) node: String,
    pub(super) who: Introduction,
    /// What is known of the agent by its first words.
    pub(super) known: Value,
}

/// What came of it.
#[derive(Clone)]
pub(super) enum Opened {
    /// It has this number.
    As(i64),
    /// This agent is not the node; why.
    Refused(String),
    /// The node is gone.
    NoNode,
}

impl Desk {
    /// Until `ended`.
    pub(super) fn open(context: &Arc<ChannelContext>, db_epoch: i64, ended: &CancellationToken) -> Desk {
        Desk {
            openings: Together::start(context, ended, move |context, all| open(context, db_epoch, all)),
            news: Together::start(context, ended, async |context, asked: Vec<Look>| {
                insist("news", || context.store.news(&asked)).await
            }),
            reports: Together::start(context, ended, async |context, all: Vec<(String, NodeReport)>| {
                kept(&all, insist("reports", || context.store.record_reports(all.clone())).await)
            }),
            statuses: Together::start(context, ended, async |context, all: Vec<(String, Value)>| {
                kept(&all, insist("status", || context.store.record_node_statuses(all.clone())).await)
            }),
            shown: Together::start(context, ended, async |context, all: Vec<(String, Shown)>| {
                kept(&all, insist("credentials", || context.store.nodes_show(all.clone())).await)
            }),
        }
    }

    /// Begins a session in the store, if the agent can be the node. `None`: that could not be found out.
    pub(super) async fn begin(&self, opening: Opening) -> Option<Opened> {
        self.openings.ask(opening).await
    }

    /// Keeps one report of a node.
    pub(super) async fn report(&self, node: &str, report: NodeReport) {
        self.reports.ask((node.to_owned(), report)).await;
    }

    /// Keeps what a node says of itself.
    pub(super) async fn status(&self, node: &str, said: Value) {
        self.statuses.ask((node.to_owned(), said)).await;
    }

    /// Keeps what a node shows and trusts.
    pub(super) async fn shows(&self, node: &str, shown: Shown) {
        self.shown.ask((node.to_owned(), shown)).await;
    }
}

fn kept<Q>(all: &[Q], done: Option<()>) -> Option<Vec<()>> {
    done.map(|()| vec![(); all.len()])
}

/// Why an agent cannot be a node is kept, so that operators see it.
async fn open(context: Arc<ChannelContext>, db_epoch: i64, all: Vec<Opening>) -> Option<Vec<Opened>> {
    let mut opened: Vec<Option<Opened>> = vec![None; all.len()];
    while opened.iter().any(Option::is_none) {
        // Of two who come as one node, each gets a number of its own.
        let mut now: BTreeMap<&str, usize> = BTreeMap::new();
        for at in (0..all.len()).filter(|at| opened[*at].is_none()) {
            now.entry(&all[at].node).or_insert(at);
        }
        let who: Vec<_> = now.values().map(|at| (all[*at].node.clone(), all[*at].who.clone())).collect();
        let mut met = insist("introduction", || context.store.introduce(&who, db_epoch)).await?;
        now.retain(|node, at| {
            let unopened = match met.remove(*node) {
                Some(None) => return true,
                Some(Some(why)) => Opened::Refused(why),
                None => Opened::NoNode,
            };
            opened[*at] = Some(unopened);
            false
        });
        let known: Vec<_> = now.values().map(|at| (all[*at].node.clone(), all[*at].known.clone())).collect();
        let numbers = || context.store.open_sessions(&known, &context.server_id);
        let numbers = if known.is_empty() { BTreeMap::new() } else { insist("session", numbers).await? };
        for (node, at) in now {
            opened[at] = Some(numbers.get(node).copied().map_or(Opened::NoNode, Opened::As));
        }
    }
    opened.into_iter().collect()
}

type Asked<Q, A> = (Q, oneshot::Sender<A>);

/// Questions of one kind.
pub(super) struct Together<Q, A>(mpsc::Sender<Asked<Q, A>>);

impl<Q: Clone + Send + 'static, A: Send + 'static> Together<Q, A> {
    /// `work` answers by the context all that it is given, in their order; `None`: it cannot.
    fn start<C, W, F>(context: &Arc<C>, ended: &CancellationToken, work: W) -> Self
    where
        C: Send + Sync + 'static,
        W: Fn(Arc<C>, Vec<Q>) -> F + Send + Sync + 'static,
        F: Future<Output = Option<Vec<A>>> + Send + 'static,
    {
        let (asks, asked) = mpsc::channel(QUEUE);
        let (context, asked) = (context.clone(), Arc::new(Mutex::new(asked)));
        let work = Arc::new(move |questions| work(context.clone(), questions));
        for _ in 0..AT_ONCE {
            let serving = serve(work.clone(), asked.clone(), ended.clone());
            tokio::spawn(ended.clone().run_until_cancelled_owned(serving));
        }
        Together(asks)
    }

    /// `None`: there is no answer; the log has the reason.
    pub(super) async fn ask(&self, question: Q) -> Option<A> {
        let (answer, answered) = oneshot::channel();
        self.0.send((question, answer)).await.ok()?;
        answered.await.ok()
    }
}

async fn serve<Q, A, W, F>(
    work: Arc<W>,
    asked: Arc<Mutex<mpsc::Receiver<Asked<Q, A>>>>,
    ended: CancellationToken,
) where
    W: Fn(Vec<Q>) -> F,
    F: Future<Output = Option<Vec<A>>> + Send + 'static,
    Q: Clone,
    A: Send + 'static,
{
    let mut some = Vec::new();
    loop {
        if asked.lock().await.recv_many(&mut some, MANY).await == 0 {
            return;
        }
        let (questions, answers): (Vec<Q>, Vec<_>) = some.drain(..).unzip();
        let found = match done(&work, &ended, questions.clone()).await {
            Some(found) => found.into_iter().map(Some).collect(),
            // What one of them cannot be told must not keep the others from what they ask.
            None if questions.len() > 1 => {
                let mut found = Vec::new();
                for question in questions {
                    found.push(
                        done(&work, &ended, vec![question]).await.and_then(|found| found.into_iter().next()),
                    );
                }
                found
            }
            None => Vec::new(),
        };
        for (answer, found) in answers.into_iter().zip(found) {
            if let Some(found) = found {
                // Whoever has gone does not hear it.
                let _ = answer.send(found);
            }
        }
    }
}

/// In a task of its own: if it panics, the next ones are served.
async fn done<Q, A, W, F>(work: &Arc<W>, ended: &CancellationToken, questions: Vec<Q>) -> Option<Vec<A>>
where
    W: Fn(Vec<Q>) -> F,
    F: Future<Output = Option<Vec<A>>> + Send + 'static,
    A: Send + 'static,
{
    match tokio::spawn(ended.clone().run_until_cancelled_owned(work(questions))).await {
        Ok(found) => found.flatten(),
        Err(error) => {
            tracing::error!(%error, "what sessions asked together came to no end");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex as Plain;

    #[tokio::test]
    async fn whoever_comes_meanwhile_is_served_together_and_a_panic_is_of_its_own_only() {
        let sizes: Arc<Plain<Vec<usize>>> = Arc::default();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let (context, open) = (Arc::new((sizes.clone(), gate.clone())), gate);
        let together =
            Together::start(&context, &CancellationToken::new(), async |context, asked: Vec<u32>| {
                let (seen, gate) = &*context;
                seen.lock().unwrap().push(asked.len());
                let _open = gate.acquire().await.unwrap();
                assert!(!asked.contains(&13));
                Some(asked.into_iter().map(|number| number * 2).collect())
            });
        let asks = (0..102).map(|number| together.ask(number));
        let answers = async { futures_util::future::join_all(asks).await };
        let (answers, ()) = tokio::join!(answers, async {
            tokio::task::yield_now().await;
            open.add_permits(1);
        });
        let right = |(number, answer): (u32, &Option<u32>)| *answer == (number != 13).then_some(number * 2);
        assert!((0..).zip(&answers).all(right), "{answers:?}");
        let sizes = sizes.lock().unwrap();
        assert_eq!(sizes.iter().filter(|size| **size > 1).sum::<usize>(), 102, "{sizes:?}");
    }
}
