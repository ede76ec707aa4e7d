-- The event log. `event` holds what each write adds in its own transaction, not yet in the log; one leader
-- takes it out of there after the commit and appends it to `event_log`, numbered without gaps and chained by
-- digests.

ALTER TABLE event RENAME TO event_before;

-- The database numbers these rows. A number says nothing of the order of commits, but two rows of one object
-- have theirs in order, because the object's own row is locked while they are written.
CREATE TABLE event (
  number {SERIAL},
  at BIGINT NOT NULL,
  class {TEXT} NOT NULL,
  tenant {TEXT} NOT NULL,
  kind {TEXT} NOT NULL,
  resource {TEXT} NOT NULL,
  name {TEXT} NOT NULL,
  verb {TEXT} NOT NULL,
  outcome {TEXT} NOT NULL,
  phase {TEXT} NOT NULL,
  version BIGINT NOT NULL,
  job {TEXT} NOT NULL,
  actor {TEXT} NOT NULL,
  credential {TEXT} NOT NULL,
  source {TEXT} NOT NULL,
  request_id {TEXT} NOT NULL,
  detail {TEXT} NOT NULL
);

INSERT INTO event (at, class, tenant, kind, resource, name, verb, outcome, phase, version, job, actor, credential,
  source, request_id, detail)
SELECT e.at, 'write', e.tenant, e.kind, e.resource, r.name, e.verb, 'accepted', '', e.version, coalesce(e.job, ''),
  e.actor, e.credential, e.source, e.request_id, ''
FROM event_before e JOIN resource r ON r.id = e.resource ORDER BY e.id;

DROP TABLE event_before;

-- Never changed, but for erasure: then what the digest covers is emptied, and the digest stays.
CREATE TABLE event_log (
  seq BIGINT NOT NULL PRIMARY KEY,
  -- When it was appended: never falls from one entry to the next.
  recorded_at BIGINT NOT NULL,
  at BIGINT NOT NULL,
  class {TEXT} NOT NULL,
  tenant {TEXT} NOT NULL,
  kind {TEXT} NOT NULL,
  resource {TEXT} NOT NULL,
  name {TEXT} NOT NULL,
  verb {TEXT} NOT NULL,
  outcome {TEXT} NOT NULL,
  phase {TEXT} NOT NULL,
  version BIGINT NOT NULL,
  job {TEXT} NOT NULL,
  actor {TEXT} NOT NULL,
  credential {TEXT} NOT NULL,
  source {TEXT} NOT NULL,
  request_id {TEXT} NOT NULL,
  detail {TEXT} NOT NULL,
  -- 1: the audit shows it. Follows from the class.
  audited BIGINT NOT NULL,
  erased BIGINT NOT NULL,
  -- Hexadecimal SHA-256: of the columns from `at` to `detail`; of the entry before; of this one.
  digest {TEXT} NOT NULL,
  prev {TEXT} NOT NULL,
  hash {TEXT} NOT NULL
);
CREATE INDEX event_log_recorded ON event_log (recorded_at, seq);
CREATE INDEX event_log_audit ON event_log (seq) WHERE audited = 1;
CREATE INDEX event_log_tenant ON event_log (tenant, seq) WHERE audited = 1;
CREATE INDEX event_log_actor ON event_log (actor, seq) WHERE audited = 1;
CREATE INDEX event_log_resource ON event_log (resource, seq) WHERE audited = 1;
CREATE INDEX event_log_kind ON event_log (kind, seq) WHERE audited = 1;
CREATE INDEX event_log_verb ON event_log (verb, seq) WHERE audited = 1;
CREATE INDEX event_log_outcome ON event_log (outcome, seq) WHERE audited = 1;

-- One row: where the log ends, and who may append to it. Every append says `WHERE epoch =`.
CREATE TABLE log_head (
  id BIGINT NOT NULL PRIMARY KEY,
  -- The first entry that is kept.
  first BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  hash {TEXT} NOT NULL,
  recorded_at BIGINT NOT NULL,
  holder {TEXT} NOT NULL,
  epoch BIGINT NOT NULL,
  until BIGINT NOT NULL
);
INSERT INTO log_head (id, first, seq, hash, recorded_at, holder, epoch, until)
VALUES (1, 1, 0, '0000000000000000000000000000000000000000000000000000000000000000', 0, '', 0, 0);

-- Entries whose hash was signed by a key that is not in the database.
CREATE TABLE log_checkpoint (
  seq BIGINT NOT NULL PRIMARY KEY,
  hash {TEXT} NOT NULL,
  at BIGINT NOT NULL,
  key {TEXT} NOT NULL,
  signature {TEXT} NOT NULL
);
