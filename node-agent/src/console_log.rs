//! What a guest printed: `console.log`, kept from filling the disk, and read while it grows.
//!
//! QEMU holds the file open for appending. When it has grown too large its end is moved to `console.log.1` and it is
//! emptied in place. Bytes are numbered over all of that, from the first that was ever printed: `console.log.base` has
//! how many came before the present file, and is locked by whoever reads or cuts.

use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A log is cut when it is larger than this, and so much of its end is kept beside it.
pub const LIMIT_BYTES: u64 = 1 << 20;
/// A guest may print gigabytes between two cuts: no more than this is read of it, but for one who follows.
const MOST_BYTES: u64 = 2 * LIMIT_BYTES;
/// What is read at once.
const PIECE_BYTES: u64 = 16 * 1024;

/// The log of one console.
#[derive(Clone, Debug)]
pub struct ConsoleLog {
    log: PathBuf,
}

/// What comes at a place of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes. There may be more behind them.
    Bytes(Vec<u8>),
    /// Nothing yet.
    End,
    /// What was there is not kept any more; what is kept begins here.
    Lost(u64),
    /// There is no such log any more.
    Gone,
}

/// A log that nobody cuts while this is held.
struct Held {
    base: Flock<File>,
    /// Bytes before the present file.
    before: u64,
}

impl ConsoleLog {
    /// The log in this file; it need not be there.
    pub fn at(log: &Path) -> Self {
        Self { log: log.to_owned() }
    }

    fn kept(&self) -> PathBuf {
        self.log.with_extension("log.1")
    }

    fn hold(&self, how: FlockArg) -> io::Result<Held> {
        let path = self.log.with_extension("log.base");
        let base = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut base = Flock::lock(base, how).map_err(|(_, error)| io::Error::from(error))?;
        let mut text = String::new();
        base.read_to_string(&mut text)?;
        // What somebody else has written there is no number: then what is printed from now on counts.
        Ok(Held { before: text.trim().parse().unwrap_or(0), base })
    }

    /// Moves the log's content away and empties it, if it is too large; what the guest prints in the very moment
    /// between may be lost.
    pub fn trim(&self) -> io::Result<bool> {
        if length(&self.log)? <= LIMIT_BYTES {
            return Ok(false);
        }
        let mut held = self.hold(FlockArg::LockExclusive)?;
        let length = length(&self.log)?;
        let mut from = File::open(&self.log)?;
        from.seek(SeekFrom::Start(length.saturating_sub(LIMIT_BYTES)))?;
        let mut to = File::create(self.kept())?;
        io::copy(&mut from.take(LIMIT_BYTES), &mut to)?;
        OpenOptions::new().write(true).open(&self.log)?.set_len(0)?;
        held.base.set_len(0)?;
        held.base.seek(SeekFrom::Start(0))?;
        writeln!(held.base, "{}", held.before + length)?;
        Ok(true)
    }

    /// Where the last lines begin, and where the log ends now. Without a number: where what is kept begins.
    pub fn window(&self, tail_lines: Option<u64>) -> io::Result<(u64, u64)> {
        if !self.log.exists() {
            return Ok((0, 0));
        }
        let held = self.hold(FlockArg::LockShared)?;
        let end = held.before + length(&self.log)?;
        let first =
            (held.before - length(&self.kept())?.min(held.before)).max(end.saturating_sub(MOST_BYTES));
        let Some(lines) = tail_lines else { return Ok((first, end)) };
        let mut bytes = Vec::new();
        while first + (bytes.len() as u64) < end {
            match self.read_at(&held, first + bytes.len() as u64)? {
                Piece::Bytes(more) => bytes.extend(more),
                _ => break,
            }
        }
        Ok((first + tail(&bytes, lines), end))
    }

    /// What is at this place.
    pub fn read(&self, at: u64) -> io::Result<Piece> {
        if !self.log.exists() {
            return Ok(Piece::Gone);
        }
        let held = self.hold(FlockArg::LockShared)?;
        self.read_at(&held, at)
    }

    fn read_at(&self, held: &Held, at: u64) -> io::Result<Piece> {
        let (path, offset) = if at < held.before {
            let first = held.before - length(&self.kept())?.min(held.before);
            if at < first {
                return Ok(Piece::Lost(first));
            }
            (self.kept(), at - first)
        } else {
            (self.log.clone(), at - held.before)
        };
        let length = length(&path)?;
        if offset > length {
            // Somebody has emptied it by hand: what is in it now is new.
            return Ok(Piece::Lost(held.before));
        }
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        // Not behind the end of what is kept beside it, where the present file goes on.
        file.take(PIECE_BYTES.min(length - offset)).read_to_end(&mut bytes)?;
        Ok(if bytes.is_empty() { Piece::End } else { Piece::Bytes(bytes) })
    }
}

/// Where the last lines begin in these bytes; a last one without its end counts.
fn tail(bytes: &[u8], lines: u64) -> u64 {
    if lines == 0 {
        return bytes.len() as u64;
    }
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let before = usize::try_from(lines - 1).ok().and_then(|skip| ends.map(|(at, _)| at + 1).nth(skip));
    before.unwrap_or(0) as u64
}

/// Zero if it is not there.
fn length(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Guest {
        _folder: tempfile::TempDir,
        file: File,
        log: ConsoleLog,
        path: PathBuf,
    }

    impl Guest {
        fn new() -> Guest {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("console.log");
            let file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
            Guest { log: ConsoleLog::at(&path), path, file, _folder: folder }
        }

        fn prints(&mut self, bytes: &[u8]) {
            self.file.write_all(bytes).unwrap();
        }

        /// All from this place on, and where it ends.
        fn reads(&self, mut at: u64) -> (Vec<u8>, u64) {
            let mut all = Vec::new();
            loop {
                match self.log.read(at).unwrap() {
                    Piece::Bytes(bytes) => {
                        at += bytes.len() as u64;
                        all.extend(bytes);
                    }
                    Piece::End => return (all, at),
                    other => panic!("{other:?} at {at}"),
                }
            }
        }
    }

    #[test]
    fn a_large_log_is_cut_and_its_end_kept() {
        let mut guest = Guest::new();
        guest.prints(b"early\n");
        assert!(!guest.log.trim().unwrap());
        guest.prints(&vec![b'x'; LIMIT_BYTES as usize]);
        assert!(guest.log.trim().unwrap());
        guest.prints(b"late\n");
        assert_eq!(fs::read(&guest.path).unwrap(), b"late\n");
        assert_eq!(fs::metadata(guest.path.with_extension("log.1")).unwrap().len(), LIMIT_BYTES);
        assert!(!ConsoleLog::at(&guest.path.with_extension("none")).trim().unwrap());
    }

    #[test]
    fn whoever_follows_misses_nothing_when_it_is_cut() {
        let mut guest = Guest::new();
        let numbers = |from: u32, to: u32| (from..to).flat_map(|n| format!("{n}\n").into_bytes());
        let mut printed: Vec<u8> = numbers(0, 100_000).collect();
        guest.prints(&printed);
        let (mut heard, mut at) = guest.reads(0);
        for round in 1..4 {
            // He has not heard all of it when it is cut.
            let more: Vec<u8> = numbers(round * 100_000, (round + 1) * 100_000).collect();
            printed.extend(&more);
            guest.prints(&more);
            guest.log.trim().unwrap();
            let (bytes, end) = guest.reads(at);
            heard.extend(bytes);
            at = end;
        }
        assert!(heard == printed, "{} of {} bytes", heard.len(), printed.len());
        assert_eq!(guest.log.window(Some(2)).unwrap(), (at - 14, at));
        assert_eq!(guest.reads(at - 14).0, b"399998\n399999\n");
    }

    #[test]
    fn what_is_not_kept_is_said_to_be_lost() {
        let mut guest = Guest::new();
        guest.prints(&vec![b'a'; 3 * LIMIT_BYTES as usize]);
        assert!(guest.log.trim().unwrap());
        guest.prints(b"b");
        assert_eq!(guest.log.read(0).unwrap(), Piece::Lost(2 * LIMIT_BYTES));
        assert_eq!(guest.log.window(None).unwrap(), (2 * LIMIT_BYTES, 3 * LIMIT_BYTES + 1));
        let (bytes, end) = guest.reads(2 * LIMIT_BYTES);
        assert_eq!((bytes.len() as u64, end), (LIMIT_BYTES + 1, 3 * LIMIT_BYTES + 1));
        // Emptied by hand.
        File::create(&guest.path).unwrap();
        assert_eq!(guest.log.read(end).unwrap(), Piece::Lost(3 * LIMIT_BYTES));
        fs::remove_file(&guest.path).unwrap();
        assert_eq!(guest.log.read(end).unwrap(), Piece::Gone);
        assert_eq!(guest.log.window(Some(9)).unwrap(), (0, 0));
    }

    #[test]
    fn lines_are_counted_from_the_end() {
        for (text, lines, wanted) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nlogin: ", 1, "login: "),
            ("a\nb\nlogin: ", 2, "b\nlogin: "),
            ("a\nb", 9, "a\nb"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
            ("\n\n\n", 2, "\n\n"),
        ] {
            let from = usize::try_from(tail(text.as_bytes(), lines)).unwrap();
            assert_eq!(&text[from..], wanted, "{lines} of {text:?}");
        }
    }
}
