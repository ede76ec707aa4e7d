//! `migrate` and `db reset`.

use rhyzome_sql::{Cell, Column, ColumnKind, Table, version};

use super::place::Place;

/// What is done to the database, also while a server is at work.
const BESIDE: [&[&str]; 6] = [
    &["tenant", "list"],
    &["audit", "verify"],
    &["audit", "erase", "somebody"],
    &["secret", "status"],
    &["secret", "rotate"],
    &["secret", "forget"],
];

/// Lets a newer program have been here.
async fn made_newer(place: &Place) {
    let column = |name: &str, kind| Column { name: name.to_owned(), kind, nullable: false };
    let versions = Table {
        name: "schema_version".to_owned(),
        columns: vec![column("version", ColumnKind::Int), column("name", ColumnKind::Text)],
        key: vec!["version".to_owned()],
        refers_to: Vec::new(),
        indexes: Vec::new(),
    };
    let row = vec![Cell::Int(version() + 1), Cell::Text("future".to_owned())];
    place.link().await.insert(&versions, &[row]).await.unwrap();
}

#[tokio::test]
async fn a_schema_is_made_and_brought_up_and_a_newer_one_refused() {
    let newest = version();
    for place in Place::both() {
        assert!(place.done(&["migrate"]).contains(&format!("the schema was made: version {newest}")));
        assert!(place.done(&["migrate"]).contains("nothing to do"));
        {
            let mut link = place.link().await;
            link.begin().await.unwrap();
            link.drop_all().await.unwrap();
            link.apply(1).await.unwrap();
            link.commit().await.unwrap();
        }
        // Whoever works beside a server of an earlier program leaves it its schema, and makes nothing.
        for words in BESIDE {
            let said = place.refused(words);
            assert!(
                said.contains("has schema version 1,") && said.contains("`rhyzome-api migrate`"),
                "{said}"
            );
        }
        assert_eq!(place.link().await.version().await.unwrap(), 1);
        assert!(!place.path().join("data/sealing.keys").exists());
        let said = place.done(&["migrate"]);
        assert!(said.contains(&format!("from version 1 to {newest}")), "{said}");

        made_newer(&place).await;
        for words in [&[] as &[&str], &["migrate"], &["db", "reset", "--yes-destroy-everything"]] {
            let said = place.refused(words);
            assert!(said.contains(&format!("schema version {}, this program", newest + 1)), "{said}");
            assert!(said.contains("start the newer program"), "{said}");
        }
        assert_eq!(place.link().await.version().await.unwrap(), newest + 1);
    }
}

#[tokio::test]
async fn a_reset_empties_and_makes_anew_but_never_under_a_server() {
    for place in Place::both() {
        // The word also makes what is not there yet.
        assert!(place.done(&["db", "reset", "--yes-destroy-everything"]).contains("0 rows were destroyed"));
        let server = place.serve();
        let counts = async || {
            let mut link = place.link().await;
            let shape = link.shape().await.unwrap();
            link.counts(&shape).await.unwrap()
        };
        for words in [&["db", "reset"] as &[&str], &["db", "reset", "--yes-destroy-everything"]] {
            let busy = place.refused(words);
            assert!(busy.contains("rhyzome-api works on"), "{busy}");
        }
        assert!(counts().await.iter().any(|(table, rows)| table == "resource" && *rows > 0));
        server.stop();

        let warned = place.refused(&["db", "reset"]);
        assert!(
            warned.contains("nothing was done") && warned.contains("--yes-destroy-everything"),
            "{warned}"
        );
        assert!(counts().await.iter().any(|(table, rows)| table == "resource" && *rows > 0));
        let said = place.done(&["db", "reset", "--yes-destroy-everything"]);
        assert!(said.contains("were destroyed") && !said.contains(" 0 rows"), "{said}");
        assert!(!counts().await.iter().any(|(table, _)| table == "resource"), "{:?}", counts().await);
        // It is as good as new.
        place.serve().stop();
        assert!(counts().await.iter().any(|(table, rows)| table == "resource" && *rows > 0));
    }
}

#[tokio::test]
async fn a_server_that_was_killed_is_believed_alive_for_its_lease() {
    let place = Place::postgres();
    drop(place.serve());
    let busy = place.refused(&["db", "reset", "--yes-destroy-everything"]);
    assert!(busy.contains("is believed dead after 15 seconds"), "{busy}");
}
