//! `restore`: into an empty database of either kind, all or nothing.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use rhyzome_pki::write_private;
use rhyzome_sql::{Cell, Link, Shape, Table, version};

use super::backup::is_kept;
use super::format::{Line, Whole, decode, of_json};
use super::schema::refuse_running;
use crate::app::TOKEN_FILE;
use crate::kernel::Env;
use crate::store::DbUrl;

/// How many rows are put in at once.
const AT_ONCE: usize = 500;

/// What was brought back.
#[derive(Debug)]
pub struct Restored {
    /// Tables.
    pub tables: usize,
    /// Rows of all of them.
    pub rows: usize,
    /// Files that were not there.
    pub files: usize,
    /// By which agents know that they deal with a restored database.
    pub db_epoch: i64,
}

/// Puts a backup into an empty database, and its files into the folder of data.
pub async fn restore(url: &DbUrl, data: &Path, file: &mut File, env: &Env) -> anyhow::Result<Restored> {
    let mut whole = Whole::check(file)?;
    if whole.schema > version() {
        return Err(rhyzome_sql::Error::Newer { found: whole.schema, known: version() })
            .context("the backup's own schema");
    }
    let files = missing_files(&mut whole, data)?;
    let mut link = url.link(true).await?;
    link.known_version().await?;
    link.begin().await?;
    refuse_running(&mut link).await?;
    if !link.is_empty().await? {
        bail!(
            "the database is not empty: a backup goes into an empty one (`rhyzome-api db reset` says what is in this \
             one, and can empty it)"
        );
    }
    link.drop_all().await?;
    link.apply(whole.schema).await?;
    let shape = link.shape().await?;
    // Some migrations bring rows: those of the backup take their place.
    link.clear(&shape).await?;
    let (tables, rows) = load(&mut link, &shape, &mut whole).await?;
    for table in &shape.tables {
        link.renumber(table).await?;
    }
    // In seconds since 1970: whoever restores the same backup twice gets two different ones, the later the higher.
    let db_epoch = link.raise_epoch(env.now().0 / 1_000_000).await?;
    link.apply(version()).await?;
    for (name, bytes) in &files {
        let path = data.join(name);
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        write_private(&path, bytes)?;
    }
    link.commit().await?;
    Ok(Restored { tables, rows, files: files.len(), db_epoch })
}

async fn load(
    link: &mut Link,
    shape: &Shape,
    whole: &mut Whole<&mut File>,
) -> anyhow::Result<(usize, usize)> {
    let mut into: Option<&Table> = None;
    let mut batch: Vec<Vec<Cell>> = Vec::new();
    let (mut tables, mut rows) = (0, 0);
    for line in whole.lines()? {
        match line? {
            Line::Row(row) => {
                let table = into.context("a row that belongs to no table")?;
                if row.len() != table.columns.len() {
                    bail!("a row of {} has {} values", table.name, row.len());
                }
                batch.push(row.into_iter().map(of_json).collect::<Result<_, _>>()?);
                rows += 1;
                if batch.len() == AT_ONCE {
                    link.insert(table, &batch).await?;
                    batch.clear();
                }
            }
            Line::Table { table: name, columns } => {
                if let Some(table) = into {
                    link.insert(table, &batch).await?;
                    batch.clear();
                }
                let table = shape.table(&name).with_context(|| format!("there is no table {name}"))?;
                if !table.columns.iter().map(|column| &column.name).eq(&columns) {
                    bail!("the table {name} has other columns: {}", columns.join(", "));
                }
                into = Some(table);
                tables += 1;
            }
            _ => {}
        }
    }
    if let Some(table) = into {
        link.insert(table, &batch).await?;
    }
    Ok((tables, rows))
}

/// The backup's files that are not there yet. An authority or a key that is there and is another one is refused:
/// with it the nodes of the backup would not be known.
fn missing_files(whole: &mut Whole<&mut File>, data: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut missing = Vec::new();
    for line in whole.lines()? {
        let Line::File { file, bytes } = line? else { continue };
        if !is_kept(&file) {
            bail!("the backup has a file of a strange name: {file}");
        }
        let bytes = decode(&bytes)?;
        match std::fs::read(data.join(&file)) {
            Ok(there) if there == bytes => {}
            // A token that was renewed since stays.
            Ok(_) if file == TOKEN_FILE => {}
            Ok(_) => bail!(
                "{} is there already, and is not the backup's: move it away first",
                data.join(&file).display()
            ),
            Err(_) => missing.push((file, bytes)),
        }
    }
    Ok(missing)
}
