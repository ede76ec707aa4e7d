//! Jobs as rows: as requests leave them, but many at once, and with a step that is done as soon as it is looked at.

use rhyzome_tests::world::World;

/// What is put into the queue.
pub struct Queue {
    world: World,
    /// How many were.
    added: u64,
}

impl Queue {
    /// That of this world, which has a crowd.
    pub fn new(world: &World) -> Queue {
        Queue { world: world.clone(), added: 0 }
    }

    /// Adds so many, each of an instance of its own, due now, one after the other; and rings, as another server would.
    pub async fn add(&mut self, many: u64) {
        let first = self.added + 1;
        self.added += many;
        let (last, nr) = (self.added, "lpad(i::text, 10, '0')");
        let due = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint - 1000000 + i % 20000";
        let sql = format!(
            "BEGIN; INSERT INTO job (id, tenant, kind, resource, resource_name, verb, hard, state, generation, snapshot, \
             step, epoch, attempts, actor, credential, source, request_id, left_behind, created_at, wake_at) \
             SELECT 'job_1000000000000000' || {nr}, r.tenant, 'instance', r.id, r.name, 'update', 0, 'waiting', 1, \
             '{{\"spec\":{{}},\"claims\":{{}}}}', 0, 0, 0, 'queue', 'queue', 'queue', 'queue', '[]', {due}, {due} \
             FROM generate_series({first}, {last}) i JOIN resource r \
             ON r.id = 'inst_0000000000000000' || lpad((i % 20000 + 1)::text, 10, '0'); \
             INSERT INTO job_step (job, idx, step, state, message, progress, made) \
             SELECT 'job_1000000000000000' || {nr}, 0, '{{\"do\":\"await_jobs\",\"jobs\":[]}}', 'waiting', '', 0, 0 \
             FROM generate_series({first}, {last}) i; COMMIT; SELECT pg_notify('rhyzome', 'j')"
        );
        self.world.sql(&sql).await;
    }

    /// True if all have ended: looked for from the end, so that what ended is not in the way.
    pub async fn is_drained(&self) -> bool {
        let open = "SELECT id FROM job WHERE finished_at IS NULL ORDER BY wake_at DESC LIMIT 1";
        self.world.ask(open).await.is_empty()
    }
}
