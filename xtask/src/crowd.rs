//! A crowd of instances, put straight into the tables of a database: what there is no time to make one by one.
//! Benches and tests look through it at how the cost of a page or of a write depends on what is there already.
//! Its objects are rows and nothing else: no node holds them, and their log entries are not chained.

/// The tenants that the crowd belongs to besides `default`, which has every second of it.
const OTHERS: usize = 64;

/// SQL, the same for both databases, that adds instances number `first` to `last` with their names, three labels,
/// a revision, a finished job and a log entry each. One in ten is stopped, one in a thousand failed; `tag.env`
/// has three values, `metadata.team` a thousand, and `tag.nr` is each one's own.
pub fn statements(first: u64, last: u64) -> Vec<String> {
    let numbers = format!(
        "WITH RECURSIVE n(i) AS (SELECT CAST({first} AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < {last})"
    );
    let nr = "substr(CAST(10000000000 + i AS TEXT), 2)";
    let id = format!("'inst_0000000000000000' || {nr}");
    let job = format!("'job_0000000000000000' || {nr}");
    let name = format!("'crowd-' || {nr}");
    let tenant = format!("CASE i % 2 WHEN 0 THEN 'default' ELSE 'crowd' || (i / 2 % {OTHERS}) END");
    let phase = "CASE WHEN i % 1000 = 7 THEN 'failed' WHEN i % 10 = 3 THEN 'stopped' ELSE 'running' END";
    let env = "CASE i % 3 WHEN 0 THEN 'prod' WHEN 1 THEN 'test' ELSE 'dev' END";
    let tags = format!("'{{\"env\":\"' || {env} || '\",\"nr\":\"' || {nr} || '\"}}'");
    let metadata = "'{\"team\":' || (i % 1000) || '}'";
    let spec = "'{\"image\":\"tiny\",\"power\":\"on\",\"vcpus\":1,\"memory_bytes\":134217728}'";
    let label = |key: &str, value: &str| {
        format!(
            "INSERT INTO label (resource, key, value, kind, tenant) {numbers} \
             SELECT {id}, '{key}', {value}, 'instance', {tenant} FROM n"
        )
    };
    vec![
        format!(
            "INSERT INTO resource (id, kind, tenant, name, tags, metadata, generation, version, status_version, phase, \
             protected, spec, claims, status, created_at, updated_at) {numbers} SELECT {id}, 'instance', {tenant}, \
             {name}, {tags}, {metadata}, 1, 1, 1, {phase}, 0, {spec}, '{{}}', '{{}}', 1000000 * i, 1000000 * i FROM n"
        ),
        format!(
            "INSERT INTO live (id, kind, tenant, name) {numbers} SELECT {id}, 'instance', {tenant}, {name} FROM n"
        ),
        label("tag.env", env),
        label("tag.nr", nr),
        label("metadata.team", "CAST(i % 1000 AS TEXT)"),
        format!(
            "INSERT INTO revision (resource, version, generation, name, tags, metadata, spec, actor, at) {numbers} \
             SELECT {id}, 1, 1, {name}, {tags}, {metadata}, {spec}, 'crowd', 1000000 * i FROM n"
        ),
        format!(
            "INSERT INTO job (id, tenant, kind, resource, resource_name, verb, hard, state, generation, snapshot, \
             step, epoch, attempts, actor, credential, source, request_id, left_behind, created_at, started_at, \
             finished_at, wake_at) {numbers} SELECT {job}, {tenant}, 'instance', {id}, {name}, 'create', 0, \
             CASE WHEN i % 1000 = 7 THEN 'failed' ELSE 'done' END, 1, '{{}}', 1, 1, 1, 'crowd', 'crowd', 'crowd', \
             'crowd', '[]', 1000000 * i, 1000000 * i, 1000000 * i, 0 FROM n"
        ),
        format!(
            "INSERT INTO event_log (seq, recorded_at, at, class, tenant, kind, resource, name, verb, outcome, phase, \
             version, job, actor, credential, source, request_id, detail, audited, erased, digest, prev, hash) \
             {numbers} SELECT (SELECT seq FROM log_head) + i - {first} + 1, 1000000 * i, 1000000 * i, 'write', \
             {tenant}, 'instance', {id}, {name}, CASE i % 4 WHEN 0 THEN 'create' ELSE 'update' END, \
             CASE WHEN i % 100 = 1 THEN 'denied' ELSE 'done' END, '', 1, '', 'actor' || (i % 500), 'crowd', 'crowd', \
             'crowd', '', 1, 0, '', '', '' FROM n"
        ),
        format!(
            "UPDATE log_head SET seq = seq + {last} - {first} + 1, recorded_at = 1000000 * CAST({last} AS BIGINT)"
        ),
        "ANALYZE".to_owned(),
    ]
}
