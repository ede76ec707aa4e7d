//! Commands to a simulation: a line each, from standard input and from a socket in its folder.

use super::Simulation;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// What can be told.
const HELP: &str = "show          how many nodes there are, and what was done on them
hold          from now on whatever is to be done on a node waits
waiting       what waits
step [N]      let the first of it (the first N) go
go            nothing waits any more
slow TIME     whatever is done takes so long: 3s, 500ms, 0s
fail KIND     whatever is done to an instance, disk, network or image fails
mend          nothing fails any more
drop NODE     its agent ends and begins again; `all` for every node
stop NODE     its agent ends; guests go on
start NODE    its agent begins again
reboot NODE   its machine goes down and comes back";

/// Bytes of a line, and then some.
const LONGEST: u64 = 64 << 10;
/// What wait lists at most.
const MOST: usize = 50;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Counts.
    Show,
    /// Everything waits.
    Hold,
    /// What waits.
    Waiting,
    /// The first so many of it go.
    Step(usize),
    /// Nothing waits.
    Go,
    /// Everything takes so long.
    Slow(Duration),
    /// Whatever is done to this kind fails.
    Fail(String),
    /// Nothing fails.
    Mend,
    /// To this node's agent, or to all.
    Agent(Deed, String),
    /// What can be told.
    Help,
}

/// What is done with an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Ends and begins.
    Drop,
    /// Ends.
    Stop,
    /// Begins.
    Start,
    /// Its machine goes down and comes back.
    Reboot,
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let agent = |deed, node: &str| Ok(Command::Agent(deed, node.to_owned()));
        match words[..] {
            ["show"] => Ok(Command::Show),
            ["hold"] => Ok(Command::Hold),
            ["waiting"] => Ok(Command::Waiting),
            ["step"] => Ok(Command::Step(1)),
            ["step", count] => {
                count.parse().map(Command::Step).map_err(|_| format!("step: {count:?} is no number"))
            }
            ["go"] => Ok(Command::Go),
            ["slow", time] => duration(time).map(Command::Slow),
            ["fail", kind] => Ok(Command::Fail(kind.to_owned())),
            ["mend"] => Ok(Command::Mend),
            ["drop", node] => agent(Deed::Drop, node),
            ["stop", node] => agent(Deed::Stop, node),
            ["start", node] => agent(Deed::Start, node),
            ["reboot", node] => agent(Deed::Reboot, node),
            ["help"] => Ok(Command::Help),
            _ => Err(format!("{:?} is no command; `help` shows them", line.trim())),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("slow: {text:?} is no time such as 3s or 500ms");
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').ok_or_else(bad)?, 1000),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    Ok(Duration::from_millis(number.saturating_mul(unit)))
}

impl Simulation {
    /// Does what it says; what is answered.
    pub fn obey(&mut self, command: &Command) -> anyhow::Result<String> {
        let rules = &self.shared.rules;
        match command {
            Command::Show => return Ok(self.show()),
            Command::Help => return Ok(HELP.to_owned()),
            Command::Waiting => {
                let mut waiting = rules.waiting();
                let count = waiting.len();
                waiting.truncate(MOST);
                return Ok(format!("{count} wait\n{}", waiting.join("\n")).trim_end().to_owned());
            }
            Command::Step(count) => {
                let gone: Vec<String> = (0..*count).map_while(|_| rules.step()).collect();
                return Ok(if gone.is_empty() { "nothing waits".to_owned() } else { gone.join("\n") });
            }
            Command::Hold => rules.hold(),
            Command::Go => rules.go(),
            Command::Slow(time) => rules.slow(*time),
            Command::Fail(kind) => rules.fail(kind),
            Command::Mend => rules.mend(),
            Command::Agent(deed, node) => self.deal(*deed, node)?,
        }
        Ok("ok".to_owned())
    }

    fn deal(&mut self, deed: Deed, node: &str) -> anyhow::Result<()> {
        let mut found = false;
        for member in self.members.values_mut().filter(|member| node == "all" || member.name == node) {
            found = true;
            match deed {
                Deed::Drop => {
                    member.stop();
                    member.start()?;
                }
                Deed::Stop => member.stop(),
                Deed::Start => member.start()?,
                Deed::Reboot => member.reboot()?,
            }
        }
        anyhow::ensure!(found, "there is no simulated node {node:?}; `all` means every one");
        Ok(())
    }

    /// `word number` in a line, so that people and programs can read it.
    fn show(&self) -> String {
        let (mut running, mut connected, mut orders) = (0, 0, 0);
        for member in self.members.values() {
            running += usize::from(member.is_running());
            connected += usize::from(member.is_connected());
            orders += member.orders();
        }
        let tally = &self.shared.tally;
        let mut lines = vec![
            format!("nodes {}", self.members.len()),
            format!("running {running}"),
            format!("connected {connected}"),
            format!("sessions {}", tally.sessions.load(Ordering::Relaxed)),
            format!("orders {orders}"),
            format!("acts {}", tally.acts.load(Ordering::Relaxed)),
            format!("changes {}", tally.changes.load(Ordering::Relaxed)),
            format!("last_change_ms {}", tally.last_change_ms.load(Ordering::Relaxed)),
            format!("waiting {}", self.shared.rules.waiting().len()),
        ];
        let words = self.shared.rules.words();
        if !words.is_empty() {
            lines.push(format!("told {words}"));
        }
        lines.join("\n")
    }
}

/// Takes commands until `shutdown`.
pub(super) async fn listen(
    simulation: Arc<Mutex<Simulation>>,
    socket: &Path,
    reads_stdin: bool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    // Ours: the folder is locked. One that was killed has left it.
    let _ = std::fs::remove_file(socket);
    let listener =
        UnixListener::bind(socket).map_err(|error| anyhow::anyhow!("{}: {error}", socket.display()))?;
    if reads_stdin {
        let simulation = simulation.clone();
        // A thread of its own: a read of a terminal cannot be broken off, and must not hold the end up.
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                println!("{}", answer(&simulation, &line));
            }
        });
    }
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(serve(simulation.clone(), stream))),
                Err(error) => {
                    tracing::warn!(%error, "a connection to the control socket could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    let _ = std::fs::remove_file(socket);
    Ok(())
}

async fn serve(simulation: Arc<Mutex<Simulation>>, stream: UnixStream) {
    let (reading, writing) = stream.into_split();
    // Whoever hears no answer any more has gone.
    let _ = converse(&simulation, reading, writing).await;
}

async fn converse(
    simulation: &Mutex<Simulation>,
    reading: impl AsyncRead + Unpin,
    mut writing: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(reading.take(LONGEST)).lines();
    while let Some(line) = lines.next_line().await? {
        writing.write_all(format!("{}\n", answer(simulation, &line)).as_bytes()).await?;
        // So much for each line.
        lines.get_mut().get_mut().set_limit(LONGEST);
    }
    Ok(())
}

fn answer(simulation: &Mutex<Simulation>, line: &str) -> String {
    if line.trim().is_empty() {
        return String::new();
    }
    let mut simulation = simulation.lock().unwrap_or_else(PoisonError::into_inner);
    let done =
        line.parse::<Command>().map_err(anyhow::Error::msg).and_then(|command| simulation.obey(&command));
    done.unwrap_or_else(|error| format!("error: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands() {
        let read = |line: &str| line.parse::<Command>();
        assert_eq!(read(" step 3 "), Ok(Command::Step(3)));
        assert_eq!(read("slow 500ms"), Ok(Command::Slow(Duration::from_millis(500))));
        assert_eq!(read("slow 3s"), Ok(Command::Slow(Duration::from_secs(3))));
        assert_eq!(read("drop sim-1"), Ok(Command::Agent(Deed::Drop, "sim-1".into())));
        for bad in ["", "step x", "slow 3", "slow s", "fly", "drop"] {
            assert!(!read(bad).unwrap_err().contains('\n'), "{bad}");
        }
        // Each command is in the help, and what the help shows is one.
        for line in HELP.lines() {
            let words: Vec<&str> = line.split("  ").next().unwrap().split(' ').collect();
            let example = words.join(" ").replace("[N]", "2").replace("TIME", "1s");
            read(&example).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
