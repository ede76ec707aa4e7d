//! Nodes that are lost: nobody knows how what is on them is; what is marked for it goes on elsewhere, and never on both;
//! what is deleted is gone when they return. The auditor looks after each.

use rhyzome_agent::lease::Standing;
use rhyzome_api::jobs::Watch;
use rhyzome_api::store::Asked;
use rhyzome_tests::audit::audit;
use rhyzome_tests::drive::calm;
use rhyzome_tests::life::{Ask, Run};
use rhyzome_tests::node::SimNode;
use rhyzome_tests::world::Engine;
use serde_json::{Value, json};

/// Tests on both databases, each in a world with two nodes and a shared pool.
macro_rules! on_each {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test] async fn $name() { super::$name(super::begin(super::Engine::Sqlite).await).await; })* }
        mod postgres { $(#[tokio::test] async fn $name() { super::$name(super::begin(super::Engine::Postgres).await).await; })* }
    };
}

on_each!(
    what_is_marked_goes_on_elsewhere,
    what_is_not_marked_is_unknown_until_its_node_returns,
    what_is_deleted_is_gone_when_its_node_returns,
    a_mark_that_the_node_has_not_heard_of_is_none,
    a_node_that_returns_in_time_keeps_what_it_has,
    what_finds_no_room_stays_and_goes_when_there_is,
    a_root_that_is_only_there_is_made_again,
    a_job_that_waits_for_the_lost_node_is_not_waited_for,
);

/// A watch of lost nodes sees one so late, at most.
const LOST_AFTER: i64 = 40;

struct Story {
    run: Run,
    watch: Watch,
}

async fn begin(engine: Engine) -> Story {
    let mut run = Run::new(engine, rhyzome_api::resources::registry().get("instance").unwrap()).await;
    run.world
        .make("", "storage-pool", "everywhere", json!({"driver": "dir", "path": "/srv/all", "shared": true}))
        .await;
    run.ask(&Ask::Make("network", "lan".into(), json!({}))).await;
    run.nodes[0].world.lease = Standing::Held;
    Story { run, watch: Watch::default() }
}

impl Story {
    async fn second_node(&mut self, memory_bytes: u64) {
        let id = self.run.world.make_node("n2", memory_bytes).await;
        let mut node = SimNode::new(&id, &self.run.time);
        node.world.lease = Standing::Held;
        node.connect(&self.run.store).await.unwrap();
        self.run.nodes.push(node);
    }

    async fn instance(&mut self, name: &str, more: Value) -> String {
        let mut spec =
            json!({"image": "tiny", "nics": {"lan": {"network": "lan"}}, "root": {"pool": "everywhere"}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        self.run.ask(&Ask::Make("instance", name.into(), spec)).await;
        self.run.quiet().await;
        self.run.id("instance", name).await.unwrap()
    }

    /// Five seconds, a look at lost nodes, and whatever follows from it at once.
    async fn go_on(&mut self) {
        self.run.time.pass(5);
        self.watch.look(&self.run.store).await.unwrap();
        calm(&self.run.store, &mut self.run.nodes).await.unwrap();
    }

    async fn go_on_for(&mut self, seconds: i64) {
        for _ in 0..seconds / 5 {
            self.go_on().await;
        }
    }

    /// The first node is cut off, and the server has noticed. Its lease is over before anybody calls it lost.
    async fn cut_off(&mut self) {
        let store = self.run.store.clone();
        self.run.nodes[0].disconnect(&store).await.unwrap();
        self.watch.look(&store).await.unwrap();
    }

    fn lease_ends(&mut self) {
        self.run.nodes[0].world.lease = Standing::Over;
        self.run.nodes[0].work();
    }

    async fn returns(&mut self) {
        let store = self.run.store.clone();
        self.run.nodes[0].connect(&store).await.unwrap();
        self.run.quiet().await;
        self.run.nodes[0].world.lease = Standing::Held;
        self.run.quiet().await;
    }

    fn runs_on(&self, index: usize, id: &str) -> bool {
        let world = &self.run.nodes[index].world;
        world.instances.get(id).is_some_and(|instance| instance.process.is_some())
    }

    async fn phase(&self, name: &str) -> String {
        let right = self.run.world.right("default");
        self.run.store.get(&right, self.run.world.kind("instance"), name).await.unwrap().core.phase
    }

    async fn fine(&self) {
        let found = audit(&self.run.world, &self.run.nodes).await;
        assert!(found.is_empty(), "{found:#?}");
    }
}

async fn what_is_marked_goes_on_elsewhere(mut story: Story) {
    let web = story.instance("web", json!({"ha": "restart"})).await;
    story.second_node(1 << 40).await;
    assert!(story.runs_on(0, &web));
    story.cut_off().await;
    story.go_on_for(30).await;
    assert!(!story.runs_on(1, &web), "its lease may still run");
    story.lease_ends();
    assert!(!story.runs_on(0, &web));
    story.go_on_for(LOST_AFTER - 30).await;
    assert!(story.runs_on(1, &web));
    story.run.quiet().await;
    assert_eq!(story.phase("web").await, "running");
    let right = story.run.world.right("default");
    let after = story.run.store.get(&right, story.run.world.kind("instance"), &web).await.unwrap();
    assert_eq!(after.claims["node"], json!(story.run.nodes[1].id));
    assert_eq!(after.claims["placement_epoch"], 2);
    let jobs = "SELECT verb, state, actor, reason FROM job WHERE kind = 'instance' ORDER BY id DESC LIMIT 1";
    let job = &story.run.world.ask(jobs).await[0];
    assert_eq!(job[..], ["move", "done", "system", "its node `n1` was lost"]);
    // The lost one hears first what it is to let go of.
    story.returns().await;
    assert!(story.runs_on(1, &web) && !story.runs_on(0, &web));
    assert!(!story.run.nodes[0].holds().contains(&web));
    story.fine().await;
    // And back again, when the other one is lost.
    let store = story.run.store.clone();
    story.run.nodes[1].disconnect(&store).await.unwrap();
    story.run.nodes[1].world.lease = Standing::Over;
    story.run.nodes[1].work();
    story.go_on_for(LOST_AFTER).await;
    assert!(story.runs_on(0, &web));
    story.run.nodes[1].connect(&store).await.unwrap();
    story.run.quiet().await;
    story.fine().await;
}

async fn what_is_not_marked_is_unknown_until_its_node_returns(mut story: Story) {
    let web = story.instance("web", json!({})).await;
    let off = story.instance("off", json!({"power": "off"})).await;
    story.second_node(1 << 40).await;
    story.cut_off().await;
    story.go_on_for(30).await;
    assert_eq!(story.phase("web").await, "running", "it may be back in a moment");
    story.go_on_for(LOST_AFTER - 30).await;
    assert_eq!((story.phase("web").await, story.phase("off").await), ("unknown".into(), "unknown".into()));
    story.go_on_for(300).await;
    assert!(story.runs_on(0, &web) && !story.runs_on(1, &web) && !story.runs_on(1, &off));
    story.returns().await;
    assert_eq!((story.phase("web").await, story.phase("off").await), ("running".into(), "stopped".into()));
    story.fine().await;
}

async fn what_is_deleted_is_gone_when_its_node_returns(mut story: Story) {
    let web = story.instance("web", json!({})).await;
    story.second_node(1 << 40).await;
    story.cut_off().await;
    story.go_on_for(LOST_AFTER).await;
    let right = story.run.world.right("default");
    let kind = story.run.world.kind("instance");
    let removed = story.run.store.remove(&right, kind, "web", None, &Asked::default()).await.unwrap();
    story.go_on_for(60).await;
    let job = story.run.store.job(&right, removed.job.as_deref().unwrap()).await.unwrap();
    assert_eq!(job.state, "running");
    assert!(
        job.steps.iter().any(|step| step.message.contains("finished when it returns")),
        "{:?}",
        job.steps
    );
    assert!(story.runs_on(0, &web));
    story.returns().await;
    assert!(story.run.id("instance", "web").await.is_none() && !story.runs_on(0, &web));
    story.fine().await;
}

/// It does not know that it is to stop it, so nobody else may start it.
async fn a_mark_that_the_node_has_not_heard_of_is_none(mut story: Story) {
    let web = story.instance("web", json!({})).await;
    story.second_node(1 << 40).await;
    story.cut_off().await;
    story.run.ask(&Ask::Patch("instance", "web".into(), json!({"spec": {"ha": "restart"}}))).await;
    story.go_on_for(400).await;
    assert!(story.runs_on(0, &web) && !story.runs_on(1, &web));
    story.returns().await;
    story.run.ask(&Ask::Patch("instance", "web".into(), json!({"tags": {"a": "b"}}))).await;
    story.run.quiet().await;
    story.fine().await;
    // Now it does.
    story.cut_off().await;
    story.lease_ends();
    story.go_on_for(LOST_AFTER).await;
    assert!(!story.runs_on(0, &web) && story.runs_on(1, &web));
    story.returns().await;
    story.fine().await;
}

async fn a_node_that_returns_in_time_keeps_what_it_has(mut story: Story) {
    let web = story.instance("web", json!({"ha": "restart"})).await;
    story.second_node(1 << 40).await;
    for _ in 0..4 {
        story.cut_off().await;
        story.go_on_for(30).await;
        // Back and away again, between two looks: all is waited for anew.
        story.returns().await;
    }
    assert!(story.runs_on(0, &web) && !story.runs_on(1, &web));
    // What was decided by what is not so any more is not done.
    let store = story.run.store.clone();
    story.run.nodes[0].disconnect(&store).await.unwrap();
    let away = store.nodes_away().await.unwrap().remove(0);
    story.returns().await;
    assert_eq!(store.rescue(&away, &web).await.unwrap(), rhyzome_api::store::Rescued::Not);
    store.node_lost(&away).await.unwrap();
    assert_eq!(story.phase("web").await, "running");
    story.fine().await;
}

async fn what_finds_no_room_stays_and_goes_when_there_is(mut story: Story) {
    let web = story.instance("web", json!({"ha": "restart"})).await;
    story.cut_off().await;
    story.lease_ends();
    story.go_on_for(100).await;
    assert_eq!(story.phase("web").await, "unknown");
    story.second_node(1 << 40).await;
    story.go_on_for(120).await;
    assert!(story.runs_on(1, &web));
    story.returns().await;
    story.fine().await;
}

async fn a_root_that_is_only_there_is_made_again(mut story: Story) {
    let local = json!({"ha": "restart", "stateless": true, "root": {}});
    let web = story.instance("web", local).await;
    story.second_node(1 << 40).await;
    let root =
        story.run.world.ask("SELECT id FROM resource WHERE name = 'web-root'").await.remove(0).remove(0);
    assert!(story.run.nodes[0].holds().contains(&root));
    story.cut_off().await;
    story.lease_ends();
    story.go_on_for(LOST_AFTER).await;
    assert!(story.runs_on(1, &web) && story.run.nodes[1].holds().contains(&root));
    story.returns().await;
    assert!(!story.run.nodes[0].holds().contains(&root), "the old one was kept");
    story.fine().await;
}

async fn a_job_that_waits_for_the_lost_node_is_not_waited_for(mut story: Story) {
    let web = story.instance("web", json!({"ha": "restart"})).await;
    story.second_node(1 << 40).await;
    story.run.nodes[0].lose();
    story.run.ask(&Ask::Act("instance", "web".into(), "restart".into())).await;
    story.run.ask(&Ask::Patch("instance", "web".into(), json!({"spec": {"vcpus": 2}}))).await;
    story.run.nodes[0].connect(&story.run.store.clone()).await.unwrap();
    story.cut_off().await;
    story.lease_ends();
    story.go_on_for(LOST_AFTER).await;
    assert!(story.runs_on(1, &web));
    let boot = story.run.nodes[1].world.instances[&web].boot.clone().unwrap();
    assert_eq!(boot.order.vcpus, 2, "what was asked for is done where it goes");
    let ended = story.run.world.ask("SELECT verb, state FROM job WHERE kind = 'instance' ORDER BY id").await;
    assert_eq!(ended[1..], [["restart", "cancelled"], ["update", "cancelled"], ["move", "done"]]);
    story.returns().await;
    story.fine().await;
}
