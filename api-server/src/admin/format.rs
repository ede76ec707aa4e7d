//! The file of a backup: lines of JSON, the same whatever database it comes from. A head, for each table its
//! columns and then its rows, files, and an end with the SHA-256 of all before it.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rhyzome_pki::hex;
use rhyzome_sql::Cell;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Version of the format.
const FORMAT: u32 = 1;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Line {
    /// The first.
    Head { rhyzome_backup: u32, schema: i64, program: String, made_at: String },
    /// What the rows after it belong to.
    Table { table: String, columns: Vec<String> },
    /// A file of the folder of data.
    File { file: String, bytes: String },
    /// The last.
    End { sha256: String },
    /// A value for each column.
    Row(Vec<Value>),
}

/// Writes lines, and knows what it has written.
pub(super) struct Writer<W: Write> {
    out: std::io::BufWriter<W>,
    digest: Sha256,
}

/// A file that was read once and found whole.
pub(super) struct Whole<R> {
    file: R,
    /// Version of the schema that it was made from.
    pub(super) schema: i64,
}

pub(super) fn head(schema: i64, made_at: String) -> Line {
    Line::Head { rhyzome_backup: FORMAT, schema, program: env!("CARGO_PKG_VERSION").to_owned(), made_at }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

pub(super) fn decode(text: &str) -> anyhow::Result<Vec<u8>> {
    BASE64_STANDARD.decode(text).context("bytes that are no base64")
}

pub(super) fn to_json(cell: Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Text(text) => Value::String(text),
        Cell::Int(number) => json!(number),
        Cell::Bytes(bytes) => json!([encode(&bytes)]),
    }
}

pub(super) fn of_json(value: Value) -> anyhow::Result<Cell> {
    Ok(match value {
        Value::Null => Cell::Null,
        Value::String(text) => Cell::Text(text),
        Value::Number(number) => Cell::Int(number.as_i64().context("a number that is too large")?),
        Value::Array(list) => match list.as_slice() {
            [Value::String(text)] => Cell::Bytes(decode(text)?),
            _ => bail!("a value that is none"),
        },
        _ => bail!("a value that is none"),
    })
}

// === impl Writer ===

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W) -> Writer<W> {
        Writer { out: std::io::BufWriter::new(out), digest: Sha256::new() }
    }

    pub(super) fn line(&mut self, line: &Line) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.digest.update(&text);
        self.out.write_all(&text).context("the backup cannot be written")
    }

    /// Writes the end.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        let sha256 = hex(&self.digest.finalize_reset());
        self.line(&Line::End { sha256 })?;
        self.out.flush().context("the backup cannot be written")
    }
}

// === impl Whole ===

impl<R: Read + Seek> Whole<R> {
    /// Reads all of it, before anything is done with it.
    pub(super) fn check(mut file: R) -> anyhow::Result<Whole<R>> {
        file.seek(SeekFrom::Start(0))?;
        let mut digest = Sha256::new();
        let (mut schema, mut ended) = (None, false);
        let mut lines = BufReader::new(&mut file);
        let mut text = Vec::new();
        loop {
            text.clear();
            if lines.read_until(b'\n', &mut text)? == 0 {
                break;
            }
            let line = serde_json::from_slice::<Line>(&text);
            if schema.is_none() {
                let Ok(Line::Head { rhyzome_backup, schema: found, .. }) = line else {
                    bail!("this is no backup that rhyzome-api has written");
                };
                if rhyzome_backup > FORMAT {
                    bail!("a newer program has written this backup: restore it with that one");
                }
                schema = Some(found);
            } else if let Ok(Line::End { sha256 }) = &line {
                ended = *sha256 == hex(&digest.finalize_reset());
            } else {
                // Whatever comes after the end is none of ours.
                ended = false;
            }
            digest.update(&text);
        }
        match schema {
            None => bail!("this is no backup that rhyzome-api has written: it is empty"),
            Some(_) if !ended => bail!("the backup is damaged or was cut off: take another one"),
            Some(schema) => Ok(Whole { file, schema }),
        }
    }

    /// All lines between head and end.
    pub(super) fn lines(&mut self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Line>>> {
        self.file.seek(SeekFrom::Start(0))?;
        let lines = BufReader::new(&mut self.file).lines();
        let lines = lines.map(|text| Ok(serde_json::from_str::<Line>(&text?)?));
        Ok(lines.filter(|line| !matches!(line, Ok(Line::Head { .. } | Line::End { .. }))))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.line(&head(3, "now".into())).unwrap();
        writer.line(&Line::Table { table: "meta".into(), columns: vec!["key".into()] }).unwrap();
        let cells = [Cell::Text("ä".into()), Cell::Null, Cell::Int(i64::MIN), Cell::Bytes(vec![0, 255])];
        writer.line(&Line::Row(cells.map(to_json).to_vec())).unwrap();
        writer.line(&Line::File { file: "pki/root.pem".into(), bytes: encode(b"x") }).unwrap();
        writer.end().unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let mut whole = Whole::check(Cursor::new(written())).unwrap();
        assert_eq!(whole.schema, 3);
        let lines: Vec<Line> = whole.lines().unwrap().map(Result::unwrap).collect();
        let [Line::Table { .. }, Line::Row(row), Line::File { .. }] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        let cells: Vec<Cell> = row.iter().map(|value| of_json(value.clone()).unwrap()).collect();
        assert_eq!(
            cells,
            [Cell::Text("ä".into()), Cell::Null, Cell::Int(i64::MIN), Cell::Bytes(vec![0, 255])]
        );
    }

    #[test]
    fn any_flipped_or_missing_byte_is_found() {
        let good = written();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Whole::check(Cursor::new(bad)).is_err(), "byte {at} flipped");
            // The last line break carries nothing.
            if at + 1 < good.len() {
                assert!(Whole::check(Cursor::new(good[..at].to_vec())).is_err(), "cut off at {at}");
            }
        }
        let more = [good.as_slice(), b"[1]\n"].concat();
        assert!(Whole::check(Cursor::new(more)).is_err(), "something after the end");
    }
}
