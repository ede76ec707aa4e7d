-- The base schema, one text for both databases. {TEXT} and {BYTES} stand for the dialect's own types:
-- text sorts by bytes on both, and bytes that are hashed or replayed stay bytes. Times are microseconds
-- since 1970. JSON is text: only `label` is ever searched.

CREATE TABLE meta (
  key {TEXT} NOT NULL PRIMARY KEY,
  value {TEXT} NOT NULL
);

-- Every object of every kind, also after it has gone: jobs and history refer to it.
CREATE TABLE resource (
  id {TEXT} NOT NULL PRIMARY KEY,
  kind {TEXT} NOT NULL,
  tenant {TEXT} NOT NULL,
  name {TEXT} NOT NULL,
  tags {TEXT} NOT NULL,
  metadata {TEXT} NOT NULL,
  generation BIGINT NOT NULL,
  version BIGINT NOT NULL,
  status_version BIGINT NOT NULL,
  phase {TEXT} NOT NULL,
  protected BIGINT NOT NULL,
  spec {TEXT} NOT NULL,
  claims {TEXT} NOT NULL,
  status {TEXT} NOT NULL,
  job {TEXT},
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  deleted_at BIGINT,
  gone_at BIGINT
);
CREATE INDEX resource_list ON resource (kind, tenant, id) WHERE gone_at IS NULL;
CREATE INDEX resource_list_all ON resource (kind, id) WHERE gone_at IS NULL;
CREATE INDEX resource_phase ON resource (kind, tenant, phase, id) WHERE gone_at IS NULL;
CREATE INDEX resource_phase_all ON resource (kind, phase, id) WHERE gone_at IS NULL;

-- The row that references point to. A delete takes it away in its own acknowledgement, so that the
-- database itself refuses "in use" and frees the name.
CREATE TABLE live (
  id {TEXT} NOT NULL PRIMARY KEY REFERENCES resource (id),
  kind {TEXT} NOT NULL,
  tenant {TEXT} NOT NULL,
  name {TEXT} NOT NULL
);
CREATE UNIQUE INDEX live_name ON live (kind, tenant, name);
CREATE INDEX live_name_all ON live (kind, name, id);

CREATE TABLE reference (
  source {TEXT} NOT NULL REFERENCES resource (id),
  field {TEXT} NOT NULL,
  target {TEXT} NOT NULL REFERENCES live (id),
  relation {TEXT} NOT NULL,
  PRIMARY KEY (source, field)
);
CREATE INDEX reference_target ON reference (target);

-- Tags and scalars of metadata, flattened: the only thing that filters look at.
CREATE TABLE label (
  resource {TEXT} NOT NULL REFERENCES resource (id),
  key {TEXT} NOT NULL,
  value {TEXT} NOT NULL,
  kind {TEXT} NOT NULL,
  tenant {TEXT} NOT NULL,
  PRIMARY KEY (resource, key)
);
CREATE INDEX label_find ON label (kind, tenant, key, value, resource);
CREATE INDEX label_find_all ON label (kind, key, value, resource);

-- Things that exist once: addresses, MACs, attachments.
CREATE TABLE lease (
  scope {TEXT} NOT NULL,
  value {TEXT} NOT NULL,
  holder {TEXT} NOT NULL REFERENCES resource (id),
  key {TEXT} NOT NULL,
  PRIMARY KEY (scope, value)
);
CREATE INDEX lease_holder ON lease (holder);

-- Ranges of addresses that must not overlap within a scope.
CREATE TABLE prefix_lease (
  scope {TEXT} NOT NULL,
  first BIGINT NOT NULL,
  last BIGINT NOT NULL,
  holder {TEXT} NOT NULL REFERENCES resource (id),
  key {TEXT} NOT NULL,
  PRIMARY KEY (scope, first)
);
CREATE INDEX prefix_lease_holder ON prefix_lease (holder);

-- Room taken on a node.
CREATE TABLE placement (
  holder {TEXT} NOT NULL PRIMARY KEY REFERENCES resource (id),
  node {TEXT} NOT NULL REFERENCES resource (id),
  vcpus BIGINT NOT NULL,
  memory_bytes BIGINT NOT NULL,
  disk_bytes BIGINT NOT NULL
);
CREATE INDEX placement_node ON placement (node);

CREATE TABLE revision (
  resource {TEXT} NOT NULL REFERENCES resource (id),
  version BIGINT NOT NULL,
  generation BIGINT NOT NULL,
  name {TEXT} NOT NULL,
  tags {TEXT} NOT NULL,
  metadata {TEXT} NOT NULL,
  spec {TEXT} NOT NULL,
  actor {TEXT} NOT NULL,
  at BIGINT NOT NULL,
  PRIMARY KEY (resource, version)
);

CREATE TABLE job (
  id {TEXT} NOT NULL PRIMARY KEY,
  tenant {TEXT} NOT NULL,
  kind {TEXT} NOT NULL,
  resource {TEXT} NOT NULL REFERENCES resource (id),
  resource_name {TEXT} NOT NULL,
  verb {TEXT} NOT NULL,
  hard BIGINT NOT NULL,
  state {TEXT} NOT NULL,
  generation BIGINT NOT NULL,
  -- Spec and claims that this job renders, whatever comes after it.
  snapshot {TEXT} NOT NULL,
  step BIGINT NOT NULL,
  awaits {TEXT},
  epoch BIGINT NOT NULL,
  attempts BIGINT NOT NULL,
  actor {TEXT} NOT NULL,
  credential {TEXT} NOT NULL,
  source {TEXT} NOT NULL,
  reason {TEXT},
  request_id {TEXT} NOT NULL,
  problem {TEXT},
  left_behind {TEXT} NOT NULL,
  created_at BIGINT NOT NULL,
  started_at BIGINT,
  finished_at BIGINT,
  wake_at BIGINT NOT NULL
);
CREATE INDEX job_due ON job (wake_at) WHERE finished_at IS NULL;
CREATE INDEX job_awaits ON job (awaits) WHERE finished_at IS NULL;
CREATE INDEX job_open ON job (resource, id) WHERE finished_at IS NULL;
CREATE INDEX job_resource ON job (resource, id);
CREATE INDEX job_tenant ON job (tenant, id);
CREATE INDEX job_tenant_state ON job (tenant, state, id);
CREATE INDEX job_state ON job (state, id);

CREATE TABLE job_step (
  job {TEXT} NOT NULL REFERENCES job (id),
  idx BIGINT NOT NULL,
  step {TEXT} NOT NULL,
  state {TEXT} NOT NULL,
  message {TEXT} NOT NULL,
  progress BIGINT NOT NULL,
  -- 1: this step made what it ordered, so undoing it takes that away.
  made BIGINT NOT NULL,
  started_at BIGINT,
  finished_at BIGINT,
  PRIMARY KEY (job, idx)
);

CREATE TABLE job_after (
  job {TEXT} NOT NULL REFERENCES job (id),
  after {TEXT} NOT NULL REFERENCES job (id),
  PRIMARY KEY (job, after)
);
CREATE INDEX job_after_after ON job_after (after);

-- What each node should hold, and what it last said of it.
CREATE TABLE assignment (
  node {TEXT} NOT NULL REFERENCES resource (id),
  object {TEXT} NOT NULL REFERENCES resource (id),
  sequence BIGINT NOT NULL,
  placement_epoch BIGINT NOT NULL,
  generation BIGINT NOT NULL,
  remove BIGINT NOT NULL,
  body {BYTES} NOT NULL,
  needs {TEXT} NOT NULL,
  state {TEXT} NOT NULL,
  reported_generation BIGINT NOT NULL,
  applied_generation BIGINT NOT NULL,
  permanent BIGINT NOT NULL,
  message {TEXT} NOT NULL,
  progress BIGINT NOT NULL,
  rendered {TEXT} NOT NULL,
  PRIMARY KEY (node, object)
);
CREATE INDEX assignment_stream ON assignment (node, sequence);
CREATE INDEX assignment_object ON assignment (object);

CREATE TABLE assignment_need (
  node {TEXT} NOT NULL,
  object {TEXT} NOT NULL,
  need {TEXT} NOT NULL,
  PRIMARY KEY (node, object, need)
);
CREATE INDEX assignment_need_need ON assignment_need (node, need);

CREATE TABLE node_state (
  node {TEXT} NOT NULL PRIMARY KEY REFERENCES resource (id),
  sequence BIGINT NOT NULL,
  session BIGINT NOT NULL,
  server {TEXT} NOT NULL,
  connected BIGINT NOT NULL,
  joined BIGINT NOT NULL,
  vcpus_used BIGINT NOT NULL,
  memory_used BIGINT NOT NULL,
  disk_used BIGINT NOT NULL
);
CREATE INDEX node_state_server ON node_state (server);

CREATE TABLE join_token (
  hash {TEXT} NOT NULL PRIMARY KEY,
  node {TEXT} NOT NULL REFERENCES resource (id),
  expires_at BIGINT NOT NULL,
  used_at BIGINT
);

CREATE TABLE certificate (
  serial {TEXT} NOT NULL PRIMARY KEY,
  node {TEXT} NOT NULL REFERENCES resource (id),
  not_after BIGINT NOT NULL,
  revoked_at BIGINT
);
CREATE INDEX certificate_node ON certificate (node);

CREATE TABLE server (
  id {TEXT} NOT NULL PRIMARY KEY,
  started_at BIGINT NOT NULL,
  heartbeat_at BIGINT NOT NULL
);

-- Each write adds its row here, in its own transaction.
CREATE TABLE event (
  id {TEXT} NOT NULL PRIMARY KEY,
  at BIGINT NOT NULL,
  tenant {TEXT} NOT NULL,
  kind {TEXT} NOT NULL,
  resource {TEXT} NOT NULL,
  verb {TEXT} NOT NULL,
  actor {TEXT} NOT NULL,
  credential {TEXT} NOT NULL,
  source {TEXT} NOT NULL,
  request_id {TEXT} NOT NULL,
  version BIGINT NOT NULL,
  job {TEXT}
);
