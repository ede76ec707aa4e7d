//! Runs an engine's helper program (qemu-img) with little memory, little time and few folders: it parses bytes
//! that guests and strangers have written.

use crate::drivers::DriverError;
use crate::host::tools;
use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};
use nix::sys::resource::{Resource, setrlimit};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MEMORY_BYTES: u64 = 1 << 30;

/// How much time a program may take.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    cpu_seconds: u64,
    deadline: Duration,
}

impl Allowance {
    /// For what looks at a file, or changes its header.
    pub const LOOK: Self = Self { cpu_seconds: 60, deadline: Duration::from_secs(120) };
    /// For what reads and writes all of a disk.
    pub const COPY: Self = Self { cpu_seconds: 3600, deadline: Duration::from_secs(6 * 3600) };
}

/// Where programs and their libraries are read from.
const SYSTEM: [&str; 6] = ["/usr", "/lib", "/lib64", "/bin", "/etc", "/proc"];

/// Runs `program` to its end. It may read the system and `read`, and write beneath `write`, where the kernel
/// has Landlock; elsewhere the limits on memory, time and privileges remain.
pub async fn run(
    program: &str,
    arguments: Vec<String>,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
) -> Result<(), DriverError> {
    run_for(Allowance::LOOK, program, arguments, read, write).await
}

/// The same, with as much time as this.
pub async fn run_for(
    allowance: Allowance,
    program: &str,
    arguments: Vec<String>,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
) -> Result<(), DriverError> {
    let name = program.to_owned();
    let (answer, result) = tokio::sync::oneshot::channel();
    // A thread of its own: Landlock confines the thread that asks and what it starts, for good.
    std::thread::Builder::new()
        .name("jail".into())
        .spawn(move || {
            // Whoever does not wait any more does not want it done either.
            let wanted = || !answer.is_closed();
            let result = run_confined(allowance, &name, &arguments, (&read, &write), wanted);
            let _ = answer.send(result);
        })
        .map_err(|error| DriverError::io("start a thread", &error))?;
    result.await.unwrap_or_else(|_| Err(DriverError::Retry(format!("{program}: its thread ended"))))
}

fn run_confined(
    allowance: Allowance,
    program: &str,
    arguments: &[String],
    (read, write): (&[PathBuf], &[PathBuf]),
    wanted: impl Fn() -> bool,
) -> Result<(), DriverError> {
    confine(read, write)
        .map_err(|error| DriverError::Retry(format!("{program}: cannot confine: {error}")))?;
    let mut command = Command::new(tools::program(program));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    limit(&mut command, allowance.cpu_seconds);
    let mut child = command
        .spawn()
        .map_err(|error| DriverError::Retry(tools::cannot_start(program, &error).to_string()))?;
    let failed = |error: io::Error| DriverError::io(program, &error);
    let said = await_end(&mut child, allowance.deadline, wanted).map_err(failed)?;
    match said {
        None => {
            Err(DriverError::Retry(format!("{program} took longer than {} s", allowance.deadline.as_secs())))
        }
        Some((status, _)) if status.success() => Ok(()),
        Some((status, said)) => {
            let line = said.lines().last().map_or_else(|| status.to_string(), ToOwned::to_owned);
            Err(DriverError::Retry(format!("{program}: {line}")))
        }
    }
}

/// None when it had to be killed.
fn await_end(
    child: &mut Child,
    deadline: Duration,
    wanted: impl Fn() -> bool,
) -> io::Result<Option<(std::process::ExitStatus, String)>> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            let mut said = String::new();
            if let Some(errors) = child.stderr.take() {
                errors.take(4096).read_to_string(&mut said)?;
            }
            return Ok(Some((status, said)));
        }
        if Instant::now() >= end || !wanted() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn confine(read: &[PathBuf], write: &[PathBuf]) -> Result<(), landlock::RulesetError> {
    let abi = ABI::V3;
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(abi))?.create()?;
    let system = SYSTEM.iter().map(Path::new);
    let nullable = Path::new("/dev/null");
    for path in system.chain(read.iter().map(PathBuf::as_path)) {
        // What does not exist (/lib64 on Alpine) needs no rule.
        if let Ok(handle) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(handle, AccessFs::from_read(abi)))?;
        }
    }
    for path in write.iter().map(PathBuf::as_path).chain([nullable]) {
        let access = if path.is_dir() { AccessFs::from_all(abi) } else { AccessFs::from_file(abi) };
        if let Ok(handle) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(handle, access))?;
        }
    }
    if rules.restrict_self()?.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no Landlock: image tools run without a folder jail");
    }
    Ok(())
}

#[allow(unsafe_code)]
fn limit(command: &mut Command, cpu_seconds: u64) {
    // SAFETY: setrlimit and prctl are plain system calls; nothing is allocated between fork and exec.
    unsafe {
        command.pre_exec(move || {
            setrlimit(Resource::RLIMIT_AS, MEMORY_BYTES, MEMORY_BYTES)?;
            setrlimit(Resource::RLIMIT_CPU, cpu_seconds, cpu_seconds)?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            // It ends with this agent, however that ends: the next one begins anew.
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(nix::sys::prctl::set_no_new_privs()?)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_nobody_waits_for_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // It writes for as long as somebody reads.
        let arguments = vec![format!("of={}", fifo.display()), "if=/dev/zero".into()];
        let running =
            tokio::spawn(run("dd", arguments, vec!["/dev/zero".into()], vec![folder.path().to_owned()]));
        let reading = tokio::task::spawn_blocking(move || {
            let mut fifo = std::fs::File::open(fifo).unwrap();
            let mut byte = [0];
            fifo.read_exact(&mut byte).unwrap();
            running.abort();
            // To its end, which comes with that of the program.
            io::copy(&mut fifo, &mut io::sink()).unwrap()
        });
        let rest = tokio::time::timeout(Duration::from_secs(30), reading).await;
        assert!(rest.is_ok_and(|read| read.is_ok()), "it goes on");
    }

    #[tokio::test]
    async fn a_jailed_program_writes_only_where_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        let touch = |path: PathBuf| {
            let arguments = vec![path.join("file").to_string_lossy().into_owned()];
            run("touch", arguments, vec![], vec![inside.clone()])
        };
        touch(inside.clone()).await.unwrap();
        let refused = touch(outside).await.unwrap_err().to_string();
        assert!(refused.contains("Permission denied"), "{refused}");
    }
}
