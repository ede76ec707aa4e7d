//! Three servers share the work on one PostgreSQL, while one after the other is ended by force.
//!
//! Real `rhyzome-api` processes, and a real PostgreSQL. The nodes are in memory: ledger, decisions and reports are the
//! agent's own, the drivers are replaced, and orders and reports pass by the store's own door in this process instead
//! of gRPC (`crash` and `split` have real agents). This process looks at no job: only the servers do.

mod clients;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use rhyzome_api::store::Store;
use rhyzome_tests::audit::audit;
use rhyzome_tests::drive::open_jobs;
use rhyzome_tests::given::{Dice, Time};
use rhyzome_tests::node::SimNode;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use xtask::http;
use xtask::world::{Process, Style, binaries, prepare};

use super::house::{Turn, alone, folder, seed, until};
use clients::{Client, Written};

const SERVERS: usize = 3;
const NODES: usize = 3;
const CLIENTS: usize = 8;
/// Of each client.
const WRITES: usize = 50;
const KILLS: usize = 10;
/// Each costs a second. All who write take objects, jobs, quotas and nodes in this order, so there are none but by
/// chance; there were twenty-five when each took them in its own.
const MOST_DEADLOCKS: u64 = 3;
/// For all jobs to end, and all entries to be in the log, when nobody asks for anything any more.
const QUIET: u64 = 90;

/// What the database itself notes of each job: which server made it, and which one ended it.
const WITNESS: &str = "
    CREATE TABLE witness (job TEXT NOT NULL, made BOOLEAN NOT NULL, server TEXT NOT NULL);
    GRANT INSERT ON witness TO PUBLIC;
    CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      INSERT INTO witness VALUES (NEW.id, TG_OP = 'INSERT', current_setting('application_name'));
      RETURN NULL;
    END $$;
    CREATE TRIGGER made AFTER INSERT ON job FOR EACH ROW EXECUTE FUNCTION witness();
    CREATE TRIGGER ended AFTER UPDATE ON job FOR EACH ROW
      WHEN (OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL) EXECUTE FUNCTION witness();";

/// Servers on one database and one folder.
struct Servers {
    processes: Vec<Process>,
    addresses: Vec<SocketAddr>,
    configs: Vec<String>,
    folder: TempDir,
    _turn: Turn,
}

impl Servers {
    fn start(world: &World) -> Servers {
        let (turn, folder) = (alone(), folder());
        let binaries = binaries().unwrap();
        prepare(&binaries).unwrap();
        let program = binaries.join("rhyzome-api").display().to_string();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::copy(world.keys(), data.join("sealing.keys")).unwrap();
        // All are held until all are chosen.
        let ports: Vec<_> = (0..2 * SERVERS)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
            .collect();
        let (mut processes, mut configs) = (Vec::new(), Vec::new());
        for number in 0..SERVERS {
            let name = format!("server{number}");
            let config = json!({
                "data": data, "db": format!("{} application_name={name}", world.db),
                "http": {"listen": ports[number]}, "grpc": {"listen": ports[SERVERS + number]},
            });
            let file = folder.path().join(format!("{name}.json")).display().to_string();
            std::fs::write(&file, config.to_string()).unwrap();
            let words = vec![program.clone(), "--config".into(), file.clone()];
            processes.push(Process::new(&name, folder.path(), words, Style::default()));
            configs.push(file);
        }
        let addresses = ports[..SERVERS].to_vec();
        let mut servers = Servers { processes, addresses, configs, folder, _turn: turn };
        (0..SERVERS).for_each(|number| servers.begin(number));
        servers
    }

    /// Starts one, and waits until it answers.
    fn begin(&mut self, number: usize) {
        self.processes[number].start().unwrap();
        until(&format!("server{number} to answer"), 30, || {
            let process = &mut self.processes[number];
            assert!(process.is_running(), "it ended{}", process.last_words());
            http::page(self.addresses[number], "/healthz", Duration::from_secs(5)).ok()
        });
    }

    /// For errors: what the servers logged of faults of their own.
    fn faults(&self) -> String {
        let texts: Vec<String> = self.processes.iter().map(Process::log_text).collect();
        let faults: Vec<&str> =
            texts.iter().flat_map(|text| text.lines()).filter(|line| line.contains("ERROR")).collect();
        format!("the servers' errors: {faults:#?}")
    }

    fn token(&self) -> String {
        let token = std::fs::read_to_string(self.folder.path().join("data/operator.token")).unwrap();
        token.trim().to_owned()
    }

    /// What `rhyzome-api audit verify` says, if the log is good.
    fn verify(&self) -> String {
        let program = binaries().unwrap().join("rhyzome-api");
        let output =
            Command::new(program).args(["--config", &self.configs[0], "audit", "verify"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said.lines().next().unwrap_or_default().to_owned()
    }
}

/// Three nodes in memory, until `stop`.
async fn nodes(store: Store, mut nodes: Vec<SimNode>, time: Time, stop: CancellationToken) -> Vec<SimNode> {
    let (mut looked, mut beat) = (Instant::now(), None::<Instant>);
    while !stop.is_cancelled() {
        time.pass_ms(i64::try_from(looked.elapsed().as_millis()).unwrap());
        looked = Instant::now();
        // Who holds their sessions lives.
        if beat.is_none_or(|beat| beat.elapsed() > Duration::from_secs(3)) {
            store.server_heartbeat("server").await.unwrap();
            beat = Some(Instant::now());
        }
        let mut busy = false;
        for node in &mut nodes {
            busy |= node.turn(&store).await.unwrap();
        }
        if !busy {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    nodes
}

/// A world whose jobs the servers look at, with an image and what nodes hold.
async fn furnished(time: &Time) -> (World, Vec<SimNode>) {
    let world = World::new(Engine::Postgres).await;
    world.sql(WITNESS).await;
    world.make_image("", "tiny").await;
    let mut nodes = Vec::new();
    for number in 0..NODES {
        let id = world.make_node(&format!("n{number}"), 1 << 40).await;
        nodes.push(SimNode::new(&id, time));
    }
    for node in &mut nodes {
        node.connect(&world.store).await.unwrap();
    }
    (world, nodes)
}

#[test]
fn three_servers_share_the_work_while_one_is_killed_every_few_seconds() {
    let (seed, runtime, time) = (seed(), Runtime::new().unwrap(), Time::begin());
    let (world, sims) = runtime.block_on(furnished(&time));
    let stop = CancellationToken::new();
    let sims = runtime.spawn(nodes(world.store.clone(), sims, time, stop.clone()));
    let mut servers = Servers::start(&world);

    let began = Instant::now();
    let loaded = catch_unwind(AssertUnwindSafe(|| under_load(&mut servers, seed)));
    let (written, tries) = loaded.unwrap_or_else(|_| panic!("seed {seed}: {}", servers.faults()));
    let seconds = began.elapsed().as_secs();
    println!(
        "seed {seed}: {} writes acknowledged, {tries} of them after another try; {KILLS} kills in {seconds} s",
        written.len()
    );
    let ended = catch_unwind(AssertUnwindSafe(|| {
        until(&format!("all jobs to end, seed {seed}"), QUIET, || {
            runtime.block_on(open_jobs(&world)).is_empty().then_some(())
        });
    }));
    if ended.is_err() {
        panic!("seed {seed}: {}\n{}", runtime.block_on(what_waits(&world)), servers.faults());
    }
    until(&format!("all entries to be in the log, seed {seed}"), QUIET, || {
        runtime.block_on(world.ask("SELECT number FROM event LIMIT 1")).is_empty().then_some(())
    });
    // What the last job left to be done goes on for a moment: copies that nobody needs.
    let removals = "SELECT object FROM assignment WHERE remove = 1";
    until("nodes to let go", 30, || runtime.block_on(world.ask(removals)).is_empty().then_some(()));

    runtime.block_on(each_write_once(&world, &written, seed));
    for (number, one) in written.iter().enumerate() {
        one.stands(servers.addresses[number % SERVERS], &servers.token(), seed);
    }
    runtime.block_on(all_have_worked(&world, seed));
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let deadlocks: u64 = runtime.block_on(world.ask(deadlocks))[0][0].parse().unwrap();
    println!("{deadlocks} deadlocks");
    assert!(deadlocks <= MOST_DEADLOCKS, "seed {seed}: {deadlocks} deadlocks");
    println!("{}", servers.verify());
    stop.cancel();
    let sims = runtime.block_on(sims).unwrap();
    let found = runtime.block_on(audit(&world, &sims));
    assert!(found.is_empty(), "seed {seed}: {found:#?}");
    for process in &mut servers.processes {
        let status = process.terminate(Duration::from_secs(30)).unwrap();
        assert!(status.success(), "seed {seed}: {status}{}", process.last_words());
    }
}

/// For errors: jobs that have not ended, what their nodes are to do, and who looks.
async fn what_waits(world: &World) -> String {
    let sql = "SELECT 'now ' || (extract(epoch FROM now()) * 1000)::bigint::text
        UNION ALL SELECT 'job ' || row_to_json(j)::text FROM job j WHERE finished_at IS NULL
        UNION ALL SELECT 'assignment ' || row_to_json(a)::text FROM assignment a
          WHERE object IN (SELECT resource FROM job WHERE finished_at IS NULL)
        UNION ALL SELECT 'server ' || row_to_json(s)::text FROM server s
        UNION ALL SELECT 'node ' || row_to_json(n)::text FROM node_state n";
    let lines: Vec<String> = world.ask(sql).await.into_iter().flatten().collect();
    lines.join("\n")
}

/// All that the clients were acknowledged, and how many of it took more than one try.
fn under_load(servers: &mut Servers, seed: u64) -> (Vec<Written>, usize) {
    let mut dice = Dice::new(seed);
    let (count, token) = (AtomicUsize::new(0), servers.token());
    let addresses = servers.addresses.clone();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = Client::new(seed, number, addresses.clone(), &token, &count);
                scope.spawn(move || client.run(WRITES))
            })
            .collect();
        let until_written = |what: &str, wanted: usize| {
            until(&format!("{wanted} writes, {what}, seed {seed}"), 60, || {
                let done = count.load(Ordering::SeqCst);
                let ended = done < wanted && clients.iter().all(ScopedJoinHandle::is_finished);
                assert!(!ended, "all clients ended");
                (done >= wanted).then_some(())
            });
        };
        for kill in 1..=KILLS {
            let at = kill * CLIENTS * WRITES / (KILLS + 2) + usize::try_from(dice.below(10)).unwrap();
            until_written("before a kill", at);
            let victim = usize::try_from(dice.below(SERVERS as u64)).unwrap();
            servers.processes[victim].kill9().unwrap();
            until_written("by the others", at + 5);
            servers.begin(victim);
        }
        let done: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        let tries = done.iter().map(|(_, tries)| tries).sum();
        (done.into_iter().flat_map(|(written, _)| written).collect(), tries)
    })
}

/// The tables have every write exactly once: its entry in the log, its job, and nothing that nobody asked for.
async fn each_write_once(world: &World, written: &[Written], seed: u64) {
    let sql = "SELECT request_id, resource, job FROM event_log WHERE class = 'write' ORDER BY seq";
    let mut entries: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for row in world.ask(sql).await.into_iter().filter(|row| row[0].starts_with("key-")) {
        entries.entry(row[0].clone()).or_default().push((row[1].clone(), row[2].clone()));
    }
    let jobs = world.ask("SELECT id, state FROM job").await;
    let jobs: BTreeMap<&str, &str> = jobs.iter().map(|row| (&*row[0], &*row[1])).collect();
    for one in written {
        let found = entries.remove(&one.key).unwrap_or_default();
        let own: Vec<_> = found.iter().filter(|(resource, _)| *resource == one.id).collect();
        assert_eq!(own.len(), 1, "seed {seed}: {one:?} is in the log {} times", own.len());
        assert_eq!(own[0].1, one.job.clone().unwrap_or_default(), "seed {seed}: {one:?}");
        if let Some(job) = &one.job {
            let state = jobs.get(job.as_str()).copied();
            // A removal preempts what is before it.
            assert!(matches!(state, Some("done" | "cancelled")), "seed {seed}: {state:?}, {one:?}");
        }
    }
    assert!(entries.is_empty(), "seed {seed}: written, and nobody was told: {entries:#?}");
    let ended = "SELECT job, count(*) FROM event_log WHERE class = 'job' GROUP BY job HAVING count(*) > 1";
    let ended = world.ask(ended).await;
    assert!(ended.is_empty(), "seed {seed}: jobs that ended more than once: {ended:?}");
}

/// Each server has taken requests and ended jobs, others' among them.
async fn all_have_worked(world: &World, seed: u64) {
    let sql = "SELECT server, made::int::text, count(*)::text FROM witness WHERE server <> '' GROUP BY 1, 2 ORDER BY 1, 2";
    let mut work: BTreeMap<String, [String; 2]> = BTreeMap::new();
    for row in world.ask(sql).await.into_iter().filter(|row| row[0].starts_with("server")) {
        work.entry(row[0].clone()).or_default()[usize::from(row[1] == "1")] = row[2].clone();
    }
    for (server, [ended, made]) in &work {
        println!("{server}: {made} jobs made, {ended} jobs ended");
    }
    let sql = "SELECT count(*)::text FROM witness a JOIN witness b ON b.job = a.job AND NOT b.made AND b.server <> a.server \
               WHERE a.made AND a.server LIKE 'server%'";
    let handed_on = world.ask(sql).await;
    println!("{} jobs were made by one server and ended by another", handed_on[0][0]);
    let idle = work.values().any(|counts| counts.iter().any(String::is_empty));
    assert!(work.len() == SERVERS && !idle, "seed {seed}: {work:?}");
    assert_ne!(handed_on[0][0], "0", "seed {seed}");
}
