//! Who asks: anything, of whatever is there or not, at any time.

use rhyzome_api::kernel::resource::Call;
use rhyzome_api::kernel::{Caller, Error};
use rhyzome_api::store::{Asked, NewObject, Store};
use serde_json::{Value, json};

use super::{AGENTS, Sim};

impl Sim {
    fn any_store(&self) -> Option<Store> {
        let stores: Vec<&Store> = self.servers.iter().filter_map(|server| server.store()).collect();
        (!stores.is_empty()).then(|| stores[self.house.pick(stores.len())].clone())
    }

    /// Somebody asks a server that is there for something.
    pub(super) async fn client(&mut self) -> Result<(), Error> {
        let name = format!("i{}", self.house.below(6));
        let kind = ["instance", "instance", "instance", "disk", "network"][self.house.pick(5)];
        let roll = self.house.below(100);
        self.house.note(format!("a client: {kind} {name} {roll}"));
        let (right, of) = (self.world.right("default"), self.world.kind(kind));
        let Some(store) = self.any_store() else { return Ok(()) };
        let asked = Asked::default();
        match roll {
            0..30 => {
                let spec = self.spec(kind);
                let body = NewObject { name: Some(name), spec, ..NewObject::default() };
                store.create(&right, of, body, &asked).await.map(drop)
            }
            30..50 => store.remove(&right, of, &name, None, &asked).await.map(drop),
            50..75 => {
                let verb = ["start", "stop", "restart", "pause", "resume"][self.house.pick(5)];
                let hard = self.house.percent(30) && matches!(verb, "stop" | "restart");
                let call = Call { verb: verb.into(), hard, ..Call::default() };
                let supersede = self.house.percent(20);
                store
                    .act(&right, self.world.kind("instance"), &name, call, supersede, None, &asked)
                    .await
                    .map(drop)
            }
            75..85 => {
                let vcpus = 1 + self.house.below(4);
                let patch = match kind {
                    "instance" if self.house.percent(40) => {
                        let ha = if self.house.percent(60) { "restart" } else { "none" };
                        json!({"spec": {"ha": ha}})
                    }
                    "instance" => json!({"spec": {"vcpus": vcpus}}),
                    "disk" => json!({"spec": {"size_bytes": (vcpus << 30)}}),
                    _ => json!({"spec": {"dns": [format!("9.9.9.{vcpus}")]}}),
                };
                store.update(&right, of, &name, patch, None, &asked).await.map(drop)
            }
            85..96 => self.about_a_job(&store).await,
            96..98 => {
                let hard = self.house.percent(50);
                let call = Call { verb: "drain".into(), hard, ..Call::default() };
                let node = format!("n{}", self.house.pick(AGENTS));
                let (right, of) = (self.world.right(""), self.world.kind("node"));
                store.act(&right, of, &node, call, false, None, &asked).await.map(drop)
            }
            _ => {
                let node = format!("n{}", self.house.pick(AGENTS));
                let patch = json!({"spec": {"cordoned": false}});
                let (right, of) = (self.world.right(""), self.world.kind("node"));
                store.update(&right, of, &node, patch, None, &asked).await.map(drop)
            }
        }
    }

    fn spec(&mut self, kind: &str) -> Value {
        match kind {
            "disk" if self.house.percent(50) => json!({"size_bytes": 1 << 30, "pool": "everywhere"}),
            "disk" => json!({"size_bytes": 1 << 30}),
            "network" => json!({}),
            _ => {
                let mut spec = json!({"image": "tiny"});
                if self.house.percent(40) {
                    spec["root"] = json!({"pool": "everywhere"});
                }
                if self.house.percent(40) {
                    spec["ha"] = json!("restart");
                    match self.house.percent(80) {
                        true => spec["root"] = json!({"pool": "everywhere"}),
                        false => spec["stateless"] = json!(self.house.percent(50)),
                    }
                }
                if self.house.percent(30) {
                    spec["disks"] = json!({"data": {"disk": format!("i{}", self.house.below(6))}});
                }
                if self.house.percent(30) {
                    spec["nics"] = json!({"lan": {"network": format!("i{}", self.house.below(6))}});
                }
                spec
            }
        }
    }

    /// Somebody cancels, retries, skips or undoes one of the last jobs.
    async fn about_a_job(&mut self, store: &Store) -> Result<(), Error> {
        let jobs = self.ask("SELECT id FROM job ORDER BY id DESC LIMIT 12").await;
        if jobs.is_empty() {
            return Ok(());
        }
        let id = jobs[self.house.pick(jobs.len())][0].clone();
        let verb = self.house.below(4);
        self.house.note(format!("job {id}: {verb}"));
        let right = Caller::system().may_everywhere("all", "job")?;
        let asked = Asked::default();
        match verb {
            0 => store.cancel_job(&right, &id).await.map(drop),
            1 => store.retry_job(&right, &id, &asked).await.map(drop),
            2 => store.skip_job(&right, &id, &asked).await.map(drop),
            _ => store.undo_job(&right, &id, &asked).await.map(drop),
        }
    }
}
