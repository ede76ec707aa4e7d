//! The agents' door, with threads of its own: when thousands of agents come back at once, their handshakes keep nobody
//! waiting who asks by REST.

use anyhow::Context as _;
use rustix::process::nice;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::channel::{Channel, ChannelContext};
use crate::process;

/// How much these threads give way to the others of this process, of 19. They have all that is left.
const GIVE_WAY: i32 = 5;

/// These threads. They end with what is done on them: nobody waits for what hangs.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves until `stop`.
pub fn serve(
    listener: TcpListener,
    context: ChannelContext,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    // It is to wake up there, not here.
    let listener = listener.into_std()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(process::workers())
        .thread_name("agents")
        .on_thread_start(|| {
            // Of this thread alone; one that may not give way goes on as it is.
            if let Err(error) = nice(GIVE_WAY) {
                tracing::debug!(%error, "a thread of the agents' door does not give way");
            }
        })
        .enable_all()
        .build()?;
    let (done, ended) = oneshot::channel();
    runtime.spawn(async move {
        let served = match TcpListener::from_std(listener) {
            Ok(listener) => Channel::serve(listener, context, stop).await,
            Err(error) => Err(error.into()),
        };
        let _ = done.send(served);
    });
    let threads = Threads(Some(runtime));
    Ok(async move {
        let served = ended.await;
        drop(threads);
        served.context("the threads of the agents' door have ended")?
    })
}
