//! What this process is allowed to be, never root.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{User, chown, geteuid, initgroups, setgid, setuid};

/// Gives up root for this user, after handing it the folder of data. Does nothing for anybody but root.
///
/// Must be called before any thread is started.
pub fn leave_root(user: &str, data: &Path) -> Result<(), String> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let account = User::from_name(user).map_err(|e| format!("the user `{user}` cannot be looked up: {e}"))?;
    let Some(account) = account.filter(|account| !account.uid.is_root()) else {
        return Err(format!(
            "the server never runs as root, and there is no user `{user}` to become: run `rhyzome-agent setup` \
             once, or name another with the key `user`"
        ));
    };
    make(data).map_err(|e| format!("the folder {} cannot be made: {e}", data.display()))?;
    hand_over(data, &account)?;
    let name = std::ffi::CString::new(user).map_err(|_| format!("`{user}` is not a user's name"))?;
    initgroups(&name, account.gid)
        .and_then(|()| setgid(account.gid))
        .and_then(|()| setuid(account.uid))
        .map_err(|e| format!("this process cannot become `{user}`: {e}"))?;
    std::fs::read_dir(data).map(drop).map_err(|e| {
        let data = data.display();
        format!(
            "the folder {data} cannot be reached by `{user}`, whom the server becomes ({e}): let everybody pass \
             through the folders above it (`namei -l {data}` shows them), or name another with the key `data`"
        )
    })
}

/// The folder for the server alone, and those above it, which whoever it becomes must pass through.
fn make(data: &Path) -> std::io::Result<()> {
    for above in data.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
        if !above.as_os_str().is_empty() && !above.exists() {
            std::fs::create_dir(above)?;
            std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data)
}

/// What this process writes is nobody else's to read: databases and their logs among it. And what is in its memory
/// is never written.
pub fn keep_private() {
    umask(Mode::from_bits_truncate(0o077));
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        eprintln!("rhyzome-api: a crash may leave a core dump: {error}");
    }
}

/// As many open files as this process may have: each agent is one, for as long as it is there.
pub fn raise_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        eprintln!("rhyzome-api: the limit on open files stays as it is: {error}");
    }
}

/// The folder and what an earlier start left in it. Links are not followed.
fn hand_over(path: &Path, account: &User) -> Result<(), String> {
    let failed =
        |e: &dyn std::fmt::Display| format!("{} cannot be handed to `{}`: {e}", path.display(), account.name);
    let meta = match std::fs::symlink_metadata(path) {
        // Another server works on the folder, and has taken a draft of its own away.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        meta => meta.map_err(|e| failed(&e))?,
    };
    if meta.is_symlink() {
        return Ok(());
    }
    chown(path, Some(account.uid), Some(account.gid)).map_err(|e| failed(&e))?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).map_err(|e| failed(&e))? {
            hand_over(&entry.map_err(|e| failed(&e))?.path(), account)?;
        }
    }
    Ok(())
}

/// Threads of each runtime: one a core, and more than one, so that nobody who takes long holds all others up.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 16))
}
