use super::*;

fn order(id: &str, placement_epoch: u64, generation: u64, sequence: u64) -> Order {
    Order { object_id: id.into(), db_epoch: 1, placement_epoch, generation, sequence, ..Order::default() }
}

fn take(ledger: &mut Ledger, order: Order) -> Result<(), Refused> {
    ledger.take(vec![order]).unwrap().remove(0).1
}

/// An older agent kept an order without what it did not know of; its successor must get that.
#[test]
fn what_another_version_has_kept_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    ledger.take(vec![order("a", 1, 1, 5), order("b", 1, 1, 6)]).unwrap();
    let file = folder.path().join("ledger/objects/a.json");
    let kept = fs::read_to_string(&file).unwrap();
    assert!(kept.contains(PROGRAM), "{kept}");
    fs::write(&file, kept.replace(PROGRAM, "0.0.1")).unwrap();

    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!((ledger.cursor(), ledger.orders().len()), (0, 2));
    // What it writes meanwhile does not forget how far it was.
    ledger.heard(&[]).unwrap();
    take(&mut ledger, order("b", 1, 1, 6)).unwrap();
    assert_eq!(ledger.cursor(), 0);
    let whole = Order { tenant: "new to the old one".into(), ..order("a", 1, 1, 5) };
    take(&mut ledger, whole.clone()).unwrap();
    assert_eq!((ledger.cursor(), &ledger.orders()["a"]), (6, &whole));
    assert_eq!(Ledger::open(folder.path()).unwrap().cursor(), 6);

    // The same bytes again are as good as others.
    fs::write(&file, fs::read_to_string(&file).unwrap().replace(PROGRAM, "9.9.9")).unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    take(&mut ledger, whole).unwrap();
    drop(ledger);
    assert_eq!(Ledger::open(folder.path()).unwrap().cursor(), 6);
}

#[test]
fn orders_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    ledger.take(vec![order("a", 1, 1, 5), order("b", 1, 1, 6)]).unwrap();
    drop(ledger);
    let ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!((ledger.db_epoch(), ledger.cursor()), (1, 6));
    assert_eq!(ledger.orders()["a"], order("a", 1, 1, 5));
}

#[test]
fn what_is_older_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    take(&mut ledger, order("a", 2, 3, 5)).unwrap();
    take(&mut ledger, order("a", 2, 3, 5)).unwrap();
    for older in [order("a", 1, 9, 6), order("a", 2, 2, 6), order("a", 2, 3, 4)] {
        let refused = take(&mut ledger, older).unwrap_err();
        assert!(refused.to_string().starts_with("stale-order: "), "{refused}");
    }
    let old_database = Order { db_epoch: 0, ..order("b", 9, 9, 9) };
    assert_eq!(take(&mut ledger, old_database), Err(Refused::DbEpoch { order: 0, ledger: 1 }));
    assert!(matches!(take(&mut ledger, order("../a", 1, 1, 7)), Err(Refused::BadId(_))));
    take(&mut ledger, order("a", 3, 1, 6)).unwrap();
    assert_eq!(ledger.orders().len(), 1);
}

#[test]
fn a_restored_database_counts_from_its_own_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    take(&mut ledger, order("a", 2, 3, 500)).unwrap();
    ledger.raise_epoch(2).unwrap();
    assert_eq!((ledger.db_epoch(), ledger.cursor()), (2, 0));
    take(&mut ledger, Order { db_epoch: 2, ..order("a", 1, 1, 7) }).unwrap();
    assert_eq!((ledger.db_epoch(), ledger.cursor()), (2, 7));
}

#[test]
fn what_is_gone_stays_gone_until_it_was_heard() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    take(&mut ledger, order("a", 1, 1, 5)).unwrap();
    take(&mut ledger, Order { remove: true, ..order("a", 1, 2, 6) }).unwrap();
    ledger.finish_removal("a").unwrap();
    assert!(ledger.orders().is_empty());
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.cursor(), 6);
    assert!(ledger.gone().contains_key("a"));
    assert!(take(&mut ledger, order("a", 1, 1, 5)).is_err());
    ledger.heard(&["a".into()]).unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    assert!(ledger.gone().is_empty());
    assert_eq!(fs::read_dir(folder.path().join("ledger/objects")).unwrap().count(), 0);
}

#[test]
fn what_is_gone_comes_back_when_it_is_ordered_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    take(&mut ledger, order("net", 1, 1, 5)).unwrap();
    take(&mut ledger, Order { remove: true, ..order("net", 1, 1, 6) }).unwrap();
    ledger.finish_removal("net").unwrap();
    assert!(take(&mut ledger, order("net", 1, 1, 5)).is_err());
    take(&mut ledger, order("net", 1, 1, 7)).unwrap();
    assert!(ledger.gone().is_empty() && ledger.orders().contains_key("net"));
}

#[test]
fn a_ledger_of_a_newer_agent_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(Ledger::open(folder.path()).unwrap());
    let meta = folder.path().join("ledger/meta.json");
    fs::write(&meta, r#"{"version":9,"db_epoch":0,"cursor":0,"gone":{}}"#).unwrap();
    let error = Ledger::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("a newer agent wrote it"), "{error}");
}

fn many(count: u64) -> Vec<Order> {
    (1..=count).map(|number| order(&format!("o{number:03}"), 1, 1, number)).collect()
}

fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder.join("ledger/objects")).unwrap();
    let mut names: Vec<_> = names.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn many_orders_are_one_file_until_there_is_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    ledger.take(many(40)).unwrap();
    assert_eq!(files(folder.path()), ["+batch-000000000001.json"]);
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!((ledger.orders().len(), ledger.cursor()), (40, 40));
    // A later order of one of them has a file of its own, and is in force.
    take(&mut ledger, order("o007", 1, 2, 41)).unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!((ledger.orders()["o007"].generation, ledger.cursor()), (2, 41));
    // A batch that comes later than a file is in force before it.
    let again = many(20).into_iter().map(|it| Order { generation: 3, sequence: it.sequence + 50, ..it });
    ledger.take(again.collect()).unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!((ledger.orders()["o007"].generation, ledger.orders()["o021"].generation), (3, 1));
    assert!(!ledger.is_settled());
    assert!(ledger.settle().unwrap() && ledger.settle().unwrap() && !ledger.settle().unwrap());
    assert!(ledger.is_settled());
    let names = files(folder.path());
    assert!(names.len() == 40 && names.iter().all(|name| name.starts_with('o')), "{names:?}");
    assert_eq!(Ledger::open(folder.path()).unwrap().orders(), ledger.orders());
}

#[test]
fn what_is_gone_does_not_come_back_with_its_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    ledger.take(many(20)).unwrap();
    take(&mut ledger, Order { remove: true, ..order("o003", 1, 2, 30) }).unwrap();
    ledger.finish_removal("o003").unwrap();
    ledger.heard(&["o003".into()]).unwrap();
    assert!(!Ledger::open(folder.path()).unwrap().orders().contains_key("o003"));
    // Nor what another database had ordered.
    ledger.take(many(20).into_iter().map(|it| Order { generation: 2, ..it }).collect()).unwrap();
    ledger.raise_epoch(2).unwrap();
    assert!(ledger.drop_stale("o004").unwrap());
    let ledger = Ledger::open(folder.path()).unwrap();
    assert!(!ledger.orders().contains_key("o004") && ledger.orders().len() == 19);
}

#[test]
fn a_batch_of_another_version_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    ledger.take(many(20)).unwrap();
    let file = folder.path().join("ledger/objects/+batch-000000000001.json");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace(PROGRAM, "0.0.1")).unwrap();
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!((ledger.orders().len(), ledger.cursor()), (20, 0));
    assert!(ledger.settle().unwrap());
    let mut ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!((ledger.orders().len(), ledger.cursor()), (20, 0));
    ledger.take(many(20)).unwrap();
    assert_eq!(Ledger::open(folder.path()).unwrap().cursor(), 20);
}
