-- What requests leave behind besides what they write: answers that are given again, and what tenants use.

-- The answer to a request that carried an `Idempotency-Key`, written in the very transaction of its write.
CREATE TABLE idempotency (
  caller {TEXT} NOT NULL,
  -- Method and path.
  route {TEXT} NOT NULL,
  key {TEXT} NOT NULL,
  -- Id of one object of a bulk call; empty for a call as a whole.
  part {TEXT} NOT NULL,
  -- Keyed hash of what was asked.
  fingerprint {BYTES} NOT NULL,
  -- 1: this is the answer for good. 0: whoever asked waits for the job, and may yet tell its end.
  settled BIGINT NOT NULL,
  status BIGINT NOT NULL,
  headers {TEXT} NOT NULL,
  body {BYTES} NOT NULL,
  job {TEXT},
  resource {TEXT},
  created_at BIGINT NOT NULL,
  PRIMARY KEY (caller, route, key, part)
);
CREATE INDEX idempotency_age ON idempotency (created_at);

-- What a tenant (its id) uses of each quantity, and the most that it may; null: the default.
CREATE TABLE quota (
  tenant {TEXT} NOT NULL REFERENCES resource (id),
  quantity {TEXT} NOT NULL,
  used BIGINT NOT NULL,
  most BIGINT,
  PRIMARY KEY (tenant, quantity)
);

-- What each object uses of it: given back with the object.
CREATE TABLE quota_use (
  holder {TEXT} NOT NULL REFERENCES resource (id),
  quantity {TEXT} NOT NULL,
  tenant {TEXT} NOT NULL,
  amount BIGINT NOT NULL,
  PRIMARY KEY (holder, quantity)
);
CREATE INDEX quota_use_tenant ON quota_use (tenant);
