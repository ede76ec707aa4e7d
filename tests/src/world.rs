//! A store of either kind with nothing but what a first start makes, and a node that a test speaks for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhyzome_api::kernel::env::Outside;
use rhyzome_api::kernel::{Caller, Env, Kind, Registry, Right};
use rhyzome_api::resources;
use rhyzome_api::sealing::{Keyring, Source};
use rhyzome_api::store::{Asked, NewObject, NodeInvite, NodeReport, Store, Written};
use rhyzome_api::{admin, app, environment};
use serde_json::{Value, json};
use sqlx::{Connection as _, Row as _};

use crate::given::Time;
use crate::model;
use crate::postgres::{Database, ON_DISK};
use crate::quick;
use crate::tables::{self, Tables, postgres};

/// What seals a world's secrets, in its folder.
const KEYS: &str = "sealing.keys";
/// Its database on SQLite, there too.
const FILE: &str = "t.db";

/// The two databases.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    /// Inside the process.
    Sqlite,
    /// A server of its own.
    Postgres,
}

/// A store, seeded, and the folder that it lives in.
#[derive(Clone)]
pub struct World {
    /// The store.
    pub store: Store,
    /// How to open it again.
    pub db: String,
    /// What seals its secrets.
    pub keyring: Arc<Keyring>,
    home: Arc<Home>,
}

/// What a world lives in.
struct Home {
    folder: tempfile::TempDir,
    // Closed before its database is dropped.
    tables: Tables,
    database: Option<Database>,
}

impl Home {
    fn of(folder: tempfile::TempDir, db: &str, database: Option<Database>) -> Home {
        Home { folder, tables: Tables::of(db), database }
    }
}

impl World {
    /// A new world on this engine.
    pub async fn new(engine: Engine) -> World {
        World::with_env(engine, environment::system_env()).await
    }

    /// A new world on this engine, with a clock and random numbers of its own.
    pub async fn with_env(engine: Engine, env: Env) -> World {
        World::with_kinds(engine, env, resources::registry()).await
    }

    /// A world whose clock the test moves.
    pub async fn with_time(engine: Engine, time: &Time, seed: u64) -> World {
        World::with_env(engine, time.env(seed)).await
    }

    /// A world that writes in the thread of whoever asks, in a runtime of one thread: there `statements` hears all that is
    /// said. SQLite has a thread of its own for that otherwise.
    pub async fn overheard(engine: Engine) -> World {
        World::with_env(engine, World::in_one_thread(engine, environment::system_env())).await
    }

    /// The same, with this clock.
    pub fn in_one_thread(engine: Engine, env: Env) -> Env {
        match engine {
            Engine::Sqlite => env.waiting(Outside::InPlace),
            Engine::Postgres => env,
        }
    }

    /// A world on the disk, where each commit waits for it: as a server has it.
    pub async fn durable(engine: Engine) -> World {
        let folder = tempfile::Builder::new().prefix("rhyzome-world-").tempdir_in(ON_DISK).unwrap();
        let database = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(tokio::task::spawn_blocking(Database::durable).await.unwrap()),
        };
        let db = World::url(&folder, database.as_ref());
        World::furnished(folder, db, database, environment::system_env(), resources::registry()).await
    }

    /// A new world on this engine, of these kinds.
    pub async fn with_kinds(engine: Engine, env: Env, kinds: Registry) -> World {
        let folder = quick::folder();
        let database = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(model::in_cluster().await),
        };
        if database.is_none() {
            model::in_file(&folder.path().join(FILE)).await;
        }
        let db = World::url(&folder, database.as_ref());
        World::furnished(folder, db, database, env, kinds).await
    }

    async fn furnished(
        folder: tempfile::TempDir,
        db: String,
        database: Option<Database>,
        env: Env,
        kinds: Registry,
    ) -> World {
        Keyring::make(&folder.path().join(KEYS), &env).unwrap();
        let world = World::opened(Home::of(folder, &db, database), db, env, kinds).await;
        app::seed(&world.store).await.unwrap();
        world
    }

    fn url(folder: &tempfile::TempDir, database: Option<&Database>) -> String {
        match database {
            None => format!("sqlite:{}", folder.path().join(FILE).display()),
            Some(database) => database.url(),
        }
    }

    async fn opened(home: Home, db: String, env: Env, kinds: Registry) -> World {
        let keyring = Arc::new(Keyring::open(Source::File(home.folder.path().join(KEYS))).unwrap());
        let store = Store::open(&db.parse().unwrap(), env, kinds).await.unwrap();
        store.seal_with(keyring.clone());
        World { store, db, keyring, home: Arc::new(home) }
    }

    /// A backup of this world, keys and all, and a world on this engine that it was restored into.
    pub async fn carried(&self, engine: Engine) -> World {
        let mut file = tempfile::tempfile().unwrap();
        let env = environment::system_env();
        admin::backup(&self.db.parse().unwrap(), self.home.folder.path(), &file, &env).await.unwrap();
        let folder = quick::folder();
        let database = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(tokio::task::spawn_blocking(Database::new).await.unwrap()),
        };
        let db = World::url(&folder, database.as_ref());
        admin::restore(&db.parse().unwrap(), folder.path(), &mut file, &env).await.unwrap();
        World::opened(Home::of(folder, &db, database), db, env, resources::registry()).await
    }

    /// The file of the keys that seal its secrets.
    pub fn keys(&self) -> PathBuf {
        self.home.folder.path().join(KEYS)
    }

    /// The folder that it lives in.
    pub fn folder(&self) -> &Path {
        self.home.folder.path()
    }

    /// All that the database has written anywhere, as bytes: its files, its log of changes, a dump.
    pub async fn written(&self) -> Vec<u8> {
        let folder = self.home.folder.path().to_owned();
        match &self.home.database {
            Some(database) => {
                self.sql("CHECKPOINT").await;
                database.written()
            }
            None => ["t.db", "t.db-wal"]
                .iter()
                .flat_map(|name| std::fs::read(folder.join(name)).unwrap())
                .collect(),
        }
    }

    /// The kind of this name.
    pub fn kind(&self, kind: &str) -> &'static dyn Kind {
        self.store.registry().get(kind).unwrap()
    }

    /// An operator's right over everything of a tenant.
    pub fn right(&self, tenant: &str) -> Right {
        Caller::system().may("all", "all", tenant).unwrap()
    }

    /// Makes an object.
    pub async fn make(&self, tenant: &str, kind: &str, name: &str, spec: Value) -> Written {
        let body = NewObject { name: Some(name.into()), spec, ..NewObject::default() };
        self.store.create(&self.right(tenant), self.kind(kind), body, &Asked::default()).await.unwrap()
    }

    /// Makes an image that has its content.
    pub async fn make_image(&self, tenant: &str, name: &str) -> String {
        let id = self.make(tenant, "image", name, json!({})).await.object.core.id;
        let content = rhyzome_api::store::ImageContent {
            sha256: "a".repeat(64),
            size_bytes: 1 << 20,
            virtual_size_bytes: 1 << 30,
            format: "qcow2".into(),
        };
        self.store.set_image_content(&self.right(tenant), &id, content, &Asked::default()).await.unwrap();
        id
    }

    /// Makes a node that has joined and is connected, with this much memory.
    pub async fn make_node(&self, name: &str, memory_bytes: u64) -> String {
        let id = self.make("", "node", name, json!({})).await.object.core.id;
        let expires_at = self.store.env().now().plus_seconds(60);
        let invite = NodeInvite { hash: format!("hash of {name}"), expires_at };
        self.store.invite_node(&self.right(""), &id, invite, &Asked::default()).await.unwrap();
        let joined = self.store.redeem_join_token(&format!("hash of {name}"), name).await.unwrap();
        assert_eq!(joined, Ok(id.clone()));
        self.store.server_heartbeat("server").await.unwrap();
        self.store.open_session(&id, "server").await.unwrap();
        let said = json!({
            "hostname": name, "architecture": "x86_64", "vcpus": 64, "memory_bytes": memory_bytes,
            "disk_bytes": 1_u64 << 40, "disk_available_bytes": 1_u64 << 40, "accelerator": "tcg",
            "capabilities": [{"name": "wireguard", "available": true, "detail": ""}],
        });
        self.store.record_node_status(&id, said).await.unwrap();
        id
    }

    /// Runs a statement straight on the database, as somebody would who should not.
    pub async fn sql(&self, sql: &str) {
        self.tables().run(sql).await;
    }

    /// How the database would carry out a statement whose values it does not know: SQLite's lines as an array,
    /// PostgreSQL's tree as an object. Where a PostgreSQL of a few thousand rows would rather read all of them, it
    /// is told not to, as one of a million would not.
    pub async fn plan(&self, sql: &str) -> Value {
        if let Some(path) = self.db.strip_prefix("sqlite:") {
            let mut conn = sqlx::SqliteConnection::connect(path).await.unwrap();
            let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let rows = sqlx::raw_sql(explain).fetch_all(&mut conn).await.unwrap();
            return rows.iter().map(|row| row.get::<String, _>("detail")).collect();
        }
        let values = (1..=32).take_while(|n| sql.contains(&format!("${n}"))).map(|_| "NULL");
        let values = values.collect::<Vec<_>>().join(", ");
        let execute = if values.is_empty() { "EXECUTE p".to_owned() } else { format!("EXECUTE p({values})") };
        let text = format!(
            "SET ROLE rhyzome_walled; SET rhyzome.wall = ',default,'; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; \
             SET enable_mergejoin = off; SET enable_bitmapscan = off; SET enable_material = off; PREPARE p AS {sql}; EXPLAIN (FORMAT JSON) {execute}"
        );
        let mut conn = postgres(&self.db).await;
        let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(text)).fetch_all(&mut conn).await.unwrap();
        let plan: String = rows[0].try_get_unchecked(0).unwrap();
        serde_json::from_str::<Value>(&plan).unwrap()[0]["Plan"].clone()
    }

    /// The tables of the database, past the store.
    pub fn tables(&self) -> &Tables {
        &self.home.tables
    }

    /// How to connect to its PostgreSQL past the store.
    pub fn postgres_options(&self) -> sqlx::postgres::PgConnectOptions {
        tables::options(&self.db)
    }

    /// What stands in the database, past the store. Columns are texts; numbers and nothing become texts too.
    pub async fn ask(&self, sql: &str) -> Vec<Vec<String>> {
        self.tables().ask(sql).await
    }

    /// Speaks for a node: every order above `cursor` is answered as carried out. The new cursor.
    pub async fn obey(&self, node: &str, cursor: i64) -> i64 {
        let orders = self.store.assignments_after(node, cursor, 1000).await.unwrap();
        let mut last = cursor;
        for order in orders {
            last = order.sequence;
            let state = if order.remove { "gone" } else { "applied" };
            let report = NodeReport {
                object_id: order.object_id,
                placement_epoch: order.placement_epoch,
                generation: order.generation,
                state: state.into(),
                ..NodeReport::default()
            };
            self.store.record_report(node, report).await.unwrap();
        }
        last
    }
}
