//! `backup` and `restore`: from a database of one kind into one of the other, and back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use rhyzome_api::admin;
use rhyzome_api::environment::system_env;
use rhyzome_sql::{Cell, ColumnKind, Error, MIGRATIONS, Table, version};

use super::place::Place;

/// What the folder of data holds that follows from something else, or is of the moment.
const PASSING: [&str; 9] = [
    "blobs",
    "ca.pem",
    "client.json",
    "pki",
    "rhyzome.db",
    "rhyzome.db-shm",
    "rhyzome.db-wal",
    "sealing.keys.lock",
    "server.lock",
];

/// All rows of all tables but which servers live and which epoch it is.
async fn content(place: &Place) -> BTreeMap<String, Vec<String>> {
    let mut link = place.link().await;
    let mut all = BTreeMap::new();
    for table in &link.shape().await.unwrap().tables {
        let mut rows = Vec::new();
        let read = link.read(table, |row| {
            rows.push(format!("{row:?}"));
            Ok::<(), Error>(())
        });
        read.await.unwrap();
        rows.retain(|row| !(table.name == "meta" && row.contains("\"db_epoch\"")));
        all.insert(table.name.clone(), rows);
    }
    all.remove("server");
    all
}

/// Files in the folder of data that a backup must have: all that nobody could make again.
fn keys(place: &Place) -> Vec<String> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let data = place.path().join("data");
    let mut all: Vec<String> = names(&data).into_iter().filter(|name| !PASSING.contains(&&**name)).collect();
    all.extend(names(&data.join("pki")).into_iter().map(|name| format!("pki/{name}")));
    all.sort();
    all
}

fn bytes(place: &Place, file: &str) -> Vec<u8> {
    std::fs::read(place.path().join("data").join(file)).unwrap()
}

#[tokio::test]
async fn a_backup_of_a_running_server_comes_back_in_the_other_kind_of_database() {
    for (from, into, back) in [
        (Place::sqlite(), Place::postgres(), Place::sqlite()),
        (Place::postgres(), Place::sqlite(), Place::postgres()),
    ] {
        let server = from.serve();
        from.done(&["tenant", "create", "acme", "--description", "caf\u{e9} \u{1f980}"]);
        let file = from.path().join("kept").display().to_string();
        let keys = keys(&from);
        assert!(
            ["log.key", "operator.token", "pki/root.pem"].iter().all(|key| keys.iter().any(|k| k == key))
        );
        let said = from.done(&["backup", &file]);
        assert!(said.contains(&format!("{} files", keys.len())), "{keys:?}: {said}");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let twice = from.refused(&["backup", &file]);
        assert!(twice.contains("cannot be made"), "{twice}");
        // A database in use is no place for a backup.
        let busy = from.refused(&["restore", &file]);
        assert!(busy.contains("rhyzome-api works on"), "{busy}");
        server.stop();
        let full = from.refused(&["restore", &file]);
        assert!(full.contains("the database is not empty"), "{full}");

        // Nothing at work any more: what is there is what must be there.
        let file = from.path().join("quiet").display().to_string();
        from.done(&["backup", &file]);
        let was = content(&from).await;
        let said = into.done(&["restore", &file]);
        assert!(said.contains(&format!("{} files are back", keys.len())), "{said}");
        assert_eq!(without_the_note(content(&into).await), was);
        for key in &keys {
            assert_eq!(bytes(&into, key), bytes(&from, key), "{key}");
        }
        let again = into.path().join("again").display().to_string();
        into.done(&["backup", &again]);
        back.done(&["restore", &again]);
        assert!(back.done(&["tenant", "list"]).contains("caf\u{e9} \u{1f980}"));

        // Life goes on, and the log is one chain still.
        back.serve().stop();
        let proven = back.done(&["audit", "verify"]);
        assert!(proven.contains("the log is whole"), "{proven}");
        let epochs = [epoch(&from).await, epoch(&into).await, epoch(&back).await];
        assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
    }
}

/// A restore notes that it was done.
fn without_the_note(mut content: BTreeMap<String, Vec<String>>) -> BTreeMap<String, Vec<String>> {
    let events = content.get_mut("event").unwrap();
    let before = events.len();
    events.retain(|row| !row.contains("\"restore\""));
    assert_eq!(events.len() + 1, before);
    content
}

async fn epoch(place: &Place) -> i64 {
    let mut link = place.link().await;
    let shape = link.shape().await.unwrap();
    let mut epoch = 1;
    let read = link.read(shape.table("meta").unwrap(), |row| {
        let words: Vec<String> = row.iter().map(|cell| format!("{cell:?}")).collect();
        if words[0].contains("\"db_epoch\"") {
            let digits: String = words[1].chars().filter(char::is_ascii_digit).collect();
            epoch = digits.parse().unwrap();
        }
        Ok::<(), Error>(())
    });
    read.await.unwrap();
    epoch
}

#[test]
fn a_backup_that_is_not_whole_changes_nothing() {
    let (from, into) = (Place::sqlite(), Place::sqlite());
    from.serve().stop();
    let file = from.path().join("kept").display().to_string();
    from.done(&["backup", &file]);
    let good = std::fs::read(&file).unwrap();
    let cut = &good[..good.len() / 2];
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for (bad, wanted) in [
        (cut, "damaged or was cut off"),
        (&flipped, "damaged or was cut off"),
        (b"hello", "no backup"),
        (b"", "no backup"),
    ] {
        std::fs::write(&file, bad).unwrap();
        let said = into.refused(&["restore", &file]);
        assert!(said.contains(wanted), "{said}");
    }
    // Keys of another cluster are not written over.
    std::fs::write(&file, &good).unwrap();
    into.serve().stop();
    into.done(&["db", "reset", "--yes-destroy-everything"]);
    let other = bytes(&into, "log.key");
    let said = into.refused(&["restore", &file]);
    assert!(said.contains("is there already, and is not the backup's: move it away first"), "{said}");
    assert_eq!(bytes(&into, "log.key"), other);
    assert!(!into.done(&["tenant", "list"]).contains("default"));
}

/// Where a backup goes to, and how often a key could have come or gone while it was written.
struct Watched {
    lock: File,
    free: u32,
    writes: u32,
}

impl Watched {
    fn lock(&mut self) -> bool {
        let lock = self.lock.try_clone().unwrap();
        Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_ok()
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writes += 1;
        self.free += u32::from(self.lock());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_sealing_key_comes_or_goes_while_a_backup_is_made() {
    let place = Place::sqlite();
    place.serve().stop();
    let data = place.path().join("data");
    let lock = File::options().write(true).open(data.join("sealing.keys.lock")).unwrap();
    let mut watched = Watched { lock, free: 0, writes: 0 };
    assert!(watched.lock());
    admin::backup(&place.db.parse().unwrap(), &data, &mut watched, &system_env()).await.unwrap();
    assert_eq!((watched.free, watched.writes > 0), (0, true));
    assert!(watched.lock());
}

/// Puts two rows into each table that has none, good for it whatever it is: every reference is to the row of the same
/// number.
async fn fill(place: &Place) {
    let mut link = place.link().await;
    let shape = link.shape().await.unwrap();
    let full = link.counts(&shape).await.unwrap();
    let cell = |kind, row: i64| match kind {
        ColumnKind::Text => Cell::Text(row.to_string()),
        ColumnKind::Int => Cell::Int(row),
        ColumnKind::Bytes => Cell::Bytes(vec![0, row as u8]),
    };
    let row = |table: &Table, row| table.columns.iter().map(|column| cell(column.kind, row)).collect();
    for table in shape.tables.iter().filter(|table| !full.iter().any(|(name, _)| *name == table.name)) {
        link.insert(table, &[row(table, 1), row(table, 2)]).await.unwrap();
    }
}

async fn carried(from: &Place, into: &Place) {
    let mut file = tempfile::tempfile().unwrap();
    let data = |place: &Place| place.path().join("data");
    let env = system_env();
    admin::backup(&from.db.parse().unwrap(), &data(from), &file, &env).await.unwrap();
    admin::restore(&into.db.parse().unwrap(), &data(into), &mut file, &env).await.unwrap();
}

/// Whatever a migration brings is in the backup by that alone.
#[tokio::test]
async fn every_table_of_every_version_goes_there_and_back() {
    for step in MIGRATIONS {
        let [from, into] = Place::both();
        let back = Place::sqlite();
        for place in [&from, &into, &back] {
            std::fs::create_dir(place.path().join("data")).unwrap();
        }
        let url: rhyzome_api::store::DbUrl = from.db.parse().unwrap();
        url.link(true).await.unwrap().migrate_to(step.version).await.unwrap();
        fill(&from).await;
        carried(&from, &into).await;
        let there = content(&into).await;
        assert_eq!(into.link().await.version().await.unwrap(), version());
        carried(&into, &back).await;
        assert_eq!(content(&back).await, there, "{}", step.name);
        if step.version == version() {
            assert_eq!(there, content(&from).await);
            let empty: Vec<_> = there.iter().filter(|(_, rows)| rows.is_empty()).collect();
            assert!(empty.is_empty(), "{empty:?}");
        }
    }
}
