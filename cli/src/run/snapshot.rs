//! `rhyzome snapshot download`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ArgMatches;
use indicatif::ProgressBar;
use rhyzome_client::{Kind, Resource};

use super::{Context, Usage, text};
use crate::wait;

/// So often in a row nothing may come.
const TRIES: u32 = 8;
/// After the first time that nothing came; the next one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);

/// Fetches the bytes of a snapshot into a new file. What broke off goes on where it was, also when this is called again;
/// the file has its name when all of it is there and proven.
pub async fn download(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").unwrap_or_default();
    let file = text(leaf, "file").map(PathBuf::from).ok_or_else(|| Usage("say into which file".into()))?;
    if file.exists() {
        bail!("{} is there already; take it away first, or choose another name", file.display());
    }
    let at = format!("{}/{name}", context.path(kind));
    let found: Result<Resource, _> = context.client.get(&at).await;
    let snapshot = found.map_err(|e| context.missing(kind, &name, e))?;
    let (sha256, size) = (snapshot.status["sha256"].as_str(), snapshot.status["size_bytes"].as_u64());
    let (Some(sha256), Some(size)) = (sha256, size) else {
        bail!("snapshot {name} was not taken yet; `rhyzome snapshot show {name}` tells how far it is");
    };
    // Part of a file's name: nothing else than it should be.
    if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("the server says that the SHA-256 of {name} is {sha256:?}, which is none");
    }
    let part = part_of(&file, sha256);
    let bar = wait::bytes_bar(&format!("download {name}"), size);
    // By its id: another one may get its name meanwhile.
    let content = format!("{}/{}/content", context.path(kind), snapshot.id);
    let fetched = whole(context, &content, &part, sha256, size, &bar).await;
    bar.finish_and_clear();
    fetched.with_context(|| {
        format!(
            "not all of {name} came; what did is in {}, and the same command goes on there",
            part.display()
        )
    })?;
    let (measured, wanted) = (part.clone(), sha256.to_owned());
    let found = tokio::task::spawn_blocking(move || digest(&measured)).await??;
    if found != wanted {
        fs::remove_file(&part)?;
        bail!("what came has the SHA-256 {found}, not {wanted}: it was thrown away; try again");
    }
    fs::rename(&part, &file).with_context(|| format!("{} cannot be named so", file.display()))?;
    context.print(&snapshot)
}

/// Until all of it is there.
async fn whole(
    context: &Context<'_>,
    path: &str,
    part: &Path,
    sha256: &str,
    size: u64,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(part)?;
        let have = file.metadata()?.len();
        if have == size {
            return file.sync_all().map_err(Into::into);
        }
        if have > size {
            file.set_len(0)?;
            continue;
        }
        bar.set_position(have);
        let came = some(context, path, &mut file, have, sha256, bar).await;
        let now = file.metadata()?.len();
        if came.is_ok() && now == size {
            continue;
        }
        let lost = came.as_ref().err().is_none_or(|error| {
            let error = error.downcast_ref::<rhyzome_client::Error>();
            error.is_some_and(|error| error.problem().is_none_or(|problem| problem.status >= 500))
        });
        let short = || anyhow::anyhow!("{now} of {size} bytes were there when it ended");
        let error = came.err().unwrap_or_else(short);
        tries = if now > have { 0 } else { tries + 1 };
        if !lost || tries >= TRIES {
            return Err(error);
        }
        bar.println(format!("{error:#}; going on"));
        tokio::time::sleep(PAUSE * 2_u32.pow(tries)).await;
    }
}

/// What comes from there on, until that ends or breaks off.
async fn some(
    context: &Context<'_>,
    path: &str,
    file: &mut File,
    have: u64,
    sha256: &str,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let (from, mut pieces) = context.client.bytes_from(path, have, sha256).await?;
    if from < have {
        // It is another one than it was.
        file.set_len(from)?;
        bar.set_position(from);
    }
    while let Some(piece) = pieces.next().await? {
        file.write_all(&piece)?;
        bar.inc(piece.len() as u64);
    }
    Ok(())
}

/// What belongs to another snapshot is not gone on with.
fn part_of(file: &Path, sha256: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", &sha256[..sha256.len().min(12)]));
    file.with_file_name(name)
}

fn digest(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_so_far_is_of_one_snapshot() {
        let file = Path::new("/backup/web.qcow2");
        let sha256 = "0123456789abcdef0123";
        assert_eq!(part_of(file, sha256), Path::new("/backup/web.qcow2.0123456789ab.part"));
        assert_ne!(part_of(file, sha256), part_of(file, "other"));
    }

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"abc").unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&file).unwrap(), known);
    }
}
