//! `backup`: all tables from one snapshot, and the files with keys.

use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Context as _;

use super::format::{Line, Writer, encode, head, to_json};
use crate::app::TOKEN_FILE;
use crate::kernel::Env;
use crate::sealing;
use crate::store::DbUrl;

/// Says which servers live: nothing to keep.
const PASSING: &str = "server";

/// The authority, in the folder of data.
const AUTHORITY: &str = "pki/";

/// How files with keys end: `log.key`, `sealing.keys`.
const KEYS: [&str; 2] = [".key", ".keys"];

/// True for files of the folder of data that are kept, by their path in it: keys, whatever they open, and nothing
/// that follows from something else. A key that another room begins to keep there is in the backup by its name.
pub(super) fn is_kept(file: &str) -> bool {
    match file.strip_prefix(AUTHORITY) {
        Some(name) => is_plain(name),
        None => is_plain(file) && (file == TOKEN_FILE || KEYS.iter().any(|end| file.ends_with(end))),
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

/// How much was kept.
#[derive(Debug)]
pub struct Kept {
    /// Version of the schema.
    pub schema: i64,
    /// Tables.
    pub tables: usize,
    /// Rows of all of them.
    pub rows: u64,
    /// Files.
    pub files: usize,
}

/// Writes all that a database and the folder of data hold, but images, also while servers are at work.
pub async fn backup(url: &DbUrl, data: &Path, out: impl Write, env: &Env) -> anyhow::Result<Kept> {
    let keys = data.join(sealing::FILE);
    let _held = if keys.exists() { Some(sealing::hold(&keys)?) } else { None };
    let pki = data.join(AUTHORITY);
    let _pki_held = if pki.exists() { Some(rhyzome_pki::hold(&pki)?) } else { None };
    let mut link = url.link(false).await?;
    link.snapshot().await?;
    let schema = link.known_version().await?;
    if schema == 0 {
        anyhow::bail!("there is nothing in the database yet");
    }
    let mut writer = Writer::new(out);
    writer.line(&head(schema, env.now().to_string()))?;
    let shape = link.shape().await?;
    let (mut tables, mut rows) = (0, 0);
    for table in shape.tables.iter().filter(|table| table.name != PASSING) {
        let columns = table.columns.iter().map(|column| column.name.clone()).collect();
        writer.line(&Line::Table { table: table.name.clone(), columns })?;
        tables += 1;
        link.read(table, |row| {
            rows += 1;
            writer.line(&Line::Row(row.into_iter().map(to_json).collect()))
        })
        .await?;
    }
    let files = kept_files(data)?;
    for file in &files {
        let path = data.join(file);
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        writer.line(&Line::File { file: file.clone(), bytes: encode(&bytes) })?;
    }
    writer.end()?;
    Ok(Kept { schema, tables, rows, files: files.len() })
}

/// Paths in the folder of data, in order.
fn kept_files(data: &Path) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for front in ["", AUTHORITY] {
        let folder = data.join(front);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| folder.display().to_string()),
        };
        for entry in entries {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let file = format!("{front}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_file() && is_kept(&file) {
                all.push(file);
            }
        }
    }
    all.sort();
    Ok(all)
}
