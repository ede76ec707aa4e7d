//! `rhyzome image import`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ArgMatches;
use rhyzome_client::{Kind, Resource};

use super::{Context, Usage, body, text, timeout};
use crate::wait;

const QCOW2: [u8; 4] = *b"QFI\xfb";

/// Makes an image, uploads its content, and waits until it is ready.
pub async fn import(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let file = text(leaf, "file").map(PathBuf::from).ok_or_else(|| Usage("say which file".into()))?;
    let size = check(&file)?;
    let path = context.path(kind);
    let image = made(context, kind, &path, leaf).await?;
    let at = format!("{path}/{}", image.id);
    let bar = wait::bytes_bar(&format!("upload {}", image.name), size);
    let moving = bar.clone();
    let sent = context.client.upload(&format!("{at}/content"), &file, move |bytes| moving.inc(bytes)).await;
    bar.finish_and_clear();
    sent.with_context(|| format!("the content of {} was not taken", image.name))?;
    if let Some(job) = &image.job {
        wait::wait(&context.client, &image.tenant, job, "import", timeout(leaf)).await?;
    }
    let image: Resource = context.client.get(&at).await?;
    context.print(&image)
}

/// A new image, or the one of this name that still waits for its content (an upload that broke off).
async fn made(context: &Context<'_>, kind: &Kind, path: &str, leaf: &ArgMatches) -> anyhow::Result<Resource> {
    let error = match context.client.create(path, body::create(context.kinds, kind, leaf)?).await {
        Ok(made) => return Ok(made.object),
        Err(error) => error,
    };
    let name = text(leaf, "name").unwrap_or_default();
    if error.problem().is_some_and(|problem| problem.word() == "name-taken") {
        let there: Resource = context.client.get(&format!("{path}/{name}")).await?;
        if there.status["sha256"].is_null() {
            return Ok(there);
        }
        bail!("image {name} is there already and has its content; delete it first, or choose another name");
    }
    Err(error.into())
}

/// Size of the file, if it looks like what the server takes. The server looks closer.
fn check(file: &Path) -> anyhow::Result<u64> {
    let unreadable = || format!("{} cannot be read", file.display());
    let mut opened = std::fs::File::open(file).with_context(unreadable)?;
    let mut magic = [0; 4];
    let size = opened.metadata().with_context(unreadable)?.len();
    if opened.read_exact(&mut magic).is_err() || magic != QCOW2 {
        let name = file.display();
        bail!("{name} is no qcow2 file; `qemu-img convert -O qcow2 {name} {name}.qcow2` makes one");
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_qcow2_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        assert!(check(&file).is_err());
        std::fs::write(&file, b"raw bytes").unwrap();
        assert!(check(&file).unwrap_err().to_string().contains("qemu-img convert"));
        std::fs::write(&file, b"QFI\xfb....").unwrap();
        assert_eq!(check(&file).unwrap(), 8);
    }
}
