//! The crash matrix: the process ends before, inside and after each commit of each job of each kind, forward and
//! back, comes back on the same database, and ends once more while it recovers. After the quiet the auditor
//! finds nothing.

use rhyzome_api::kernel::env::Moment;
use rhyzome_api::kernel::{Kind, Timestamp};
use rhyzome_tests::audit::{Wrong, audit};
use rhyzome_tests::given::Dice;
use rhyzome_tests::life::{Ask, Run, can_be_refused, is_asked, life};
use rhyzome_tests::world::Engine;

/// How many live one after the other in one database.
const LIVES: u64 = 10;

const MOMENTS: [Moment; 3] = [Moment::Before, Moment::Inside, Moment::After];

/// A life of this kind; `refused`: its node cannot make it, so that its creation is undone.
async fn lived(engine: Engine, kind: &'static dyn Kind, refused: bool, at: &[(u64, Moment)]) -> (u64, u32) {
    lived_in(&mut Run::new(engine, kind).await, kind, refused, at).await
}

/// The same in a world in which others may have lived before; all of them have left.
async fn lived_in(run: &mut Run, kind: &'static dyn Kind, refused: bool, at: &[(u64, Moment)]) -> (u64, u32) {
    run.comebacks = 0;
    run.strikes.plan(at);
    let mut asks = life(kind);
    if refused {
        let first = asks.remove(0);
        run.ask(&first).await;
        let Ask::Make(of, name, _) = &first else { panic!("{first:?}") };
        let id = run.id(of, name).await.unwrap();
        run.nodes[0].refuses.insert(id, "no such machine".into());
        run.quiet().await;
        asks = asks.split_off(asks.len() - 1);
    }
    let found = run.live(&asks).await;
    let kind = kind.meta().kind;
    assert!(found.is_empty(), "{kind}, refused: {refused}, ended at {at:?}: {found:#?}");
    (run.strikes.commits(), run.comebacks)
}

/// All lives that there are.
fn lives() -> Vec<(&'static dyn Kind, bool)> {
    let mut all = Vec::new();
    for kind in rhyzome_api::resources::registry().all().iter().filter(|kind| is_asked(**kind)) {
        all.push((*kind, false));
        if can_be_refused(*kind) {
            all.push((*kind, true));
        }
    }
    all
}

#[tokio::test]
async fn every_commit_of_every_life() {
    let mut points = 0;
    for (kind, refused) in lives() {
        let (commits, _) = lived(Engine::Sqlite, kind, refused, &[]).await;
        for commit in 1..=commits {
            for moment in MOMENTS {
                let (_, comebacks) = lived(Engine::Sqlite, kind, refused, &[(commit, moment)]).await;
                // What is refused is never committed: there is no inside and no after.
                assert!(comebacks > 0 || moment != Moment::Before, "it did not end at {commit}");
                points += comebacks.min(1);
            }
        }
        println!("{}, refused: {refused}: {commits} commits", kind.meta().kind);
    }
    println!("{points} crash points");
    assert!(points > 8 * lives().len() as u32, "{points}");
}

/// Each commit once on PostgreSQL too, its moment by a seed; one life after the other in the same database.
#[tokio::test]
async fn every_commit_of_every_life_on_postgres() {
    let (seed, mut points) = (3, 0);
    let mut dice = Dice::new(seed);
    for (kind, refused) in lives() {
        let mut run = Run::new(Engine::Postgres, kind).await;
        // The node keeps its copy of the image: from the second life on it has one thing less to say.
        lived_in(&mut run, kind, refused, &[]).await;
        let (commits, _) = lived_in(&mut run, kind, refused, &[]).await;
        for commit in 1..=commits {
            // Servers that end in the same process leave connections behind, and the database has a hundred.
            if commit.is_multiple_of(LIVES) {
                run = Run::new(Engine::Postgres, kind).await;
            }
            let moment = MOMENTS[usize::try_from(dice.below(3)).unwrap()];
            println!("seed {seed}, {}, refused: {refused}: {commit} {moment:?}", kind.meta().kind);
            let (_, comebacks) = lived_in(&mut run, kind, refused, &[(commit, moment)]).await;
            assert!(comebacks > 0 || moment != Moment::Before, "it did not end at {commit}");
            points += comebacks.min(1);
        }
    }
    println!("{points} crash points");
    assert!(points > 4 * lives().len() as u32, "{points}");
}

/// Twice: at any commit, and once more within the next few.
#[tokio::test]
async fn again_while_it_recovers() {
    for (seed, engine, pairs) in [(1, Engine::Sqlite, 40), (2, Engine::Postgres, 16)] {
        let mut dice = Dice::new(seed);
        let held: Vec<_> = lives()
            .into_iter()
            .filter(|(kind, _)| kind.meta().held != rhyzome_api::kernel::Held::Never)
            .collect();
        let mut commits = Vec::new();
        for (kind, refused) in &held {
            commits.push(lived(engine, *kind, *refused, &[]).await.0);
        }
        for _ in 0..pairs {
            let which = usize::try_from(dice.below(held.len() as u64)).unwrap();
            let (kind, refused) = held[which];
            let first = 1 + dice.below(commits[which]);
            let moment = |dice: &mut Dice| MOMENTS[usize::try_from(dice.below(3)).unwrap()];
            let mut at = vec![(first, moment(&mut dice))];
            at.push((first + 1 + dice.below(3), moment(&mut dice)));
            println!("seed {seed}, {engine:?}, {}: {at:?}", kind.meta().kind);
            lived(engine, kind, refused, &at).await;
        }
    }
}

/// What the auditor would say if one of each were there.
#[tokio::test]
async fn the_auditor_finds_what_is_planted() {
    let kind = rhyzome_api::resources::registry().get("instance").unwrap();
    let mut run = Run::new(Engine::Sqlite, kind).await;
    let made = life(kind).remove(0);
    run.ask(&made).await;
    run.quiet().await;
    assert_eq!(audit(&run.world, &run.nodes).await, []);
    let Ask::Make(of, name, _) = &made else { panic!("{made:?}") };
    let id = run.id(of, name).await.unwrap();
    let expect = async |run: &Run, wrong: Wrong, what: &str| {
        let found = audit(&run.world, &run.nodes).await;
        assert!(
            found.iter().any(|f| f.wrong == wrong && f.what.contains(what)),
            "{wrong:?} {what}: {found:#?}"
        );
    };

    let guest = run.nodes[0].world.instances[&id].clone();
    run.nodes[0].world.instances.insert("inst_nobody".into(), guest.clone());
    expect(&run, Wrong::Orphan, "inst_nobody").await;
    expect(&run, Wrong::Duplicate, "inst_nobody").await;
    run.nodes[0].world.instances.remove("inst_nobody");

    run.nodes[0].world.instances.remove(&id);
    expect(&run, Wrong::Ghost, &id).await;
    run.nodes[0].world.instances.insert(id.clone(), guest);
    assert_eq!(audit(&run.world, &run.nodes).await, []);

    let Timestamp(now) = run.time.now();
    let gone = format!("UPDATE resource SET deleted_at = {now} WHERE id = '{id}'");
    run.world.sql(&gone).await;
    expect(&run, Wrong::Stuck, &id).await;
    expect(&run, Wrong::Leak, "name").await;
    run.world.sql(&format!("UPDATE resource SET deleted_at = NULL WHERE id = '{id}'")).await;

    let lease = format!(
        "INSERT INTO lease (scope, value, holder, key) VALUES ('address:x', '10.9.9.9', '{id}', 'nics.x.address')"
    );
    run.world.sql(&lease).await;
    expect(&run, Wrong::Leak, "10.9.9.9").await;
    run.world.sql("DELETE FROM lease WHERE value = '10.9.9.9'").await;

    run.world.sql(&format!("UPDATE placement SET vcpus = vcpus + 1 WHERE holder = '{id}'")).await;
    expect(&run, Wrong::Leak, "sum of a node").await;
    run.world.sql(&format!("UPDATE placement SET vcpus = vcpus - 1 WHERE holder = '{id}'")).await;

    run.world.sql(&format!("UPDATE job SET finished_at = NULL WHERE resource = '{id}'")).await;
    expect(&run, Wrong::Stuck, "job").await;
}
